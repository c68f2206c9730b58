//! Extended attributes: facts about the torrent for scripts.
//!
//! | name | on | value |
//! |---|---|---|
//! | `user.p2pfs.infohash` | root, files | the info hash, 40 hexadecimal digits |
//! | `user.p2pfs.state` | a folder that is still empty | what it waits for |
//! | `user.p2pfs.progress` | root (the whole torrent), files | verified and all bytes, as `1048576/52428800` |
//!
//! Progress is two exact numbers rather than a percentage: equal if and only if all is here.

use nix::errno::Errno;

use super::content::Content;

/// The info hash.
const INFOHASH: &[u8] = b"user.p2pfs.infohash";

/// Verified bytes of all bytes.
const PROGRESS: &[u8] = b"user.p2pfs.progress";

/// What an empty folder waits for.
const STATE: &[u8] = b"user.p2pfs.state";

/// The answer to a request that may only ask how long the answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its length in bytes.
    Length(u32),
    /// The answer.
    Value(Vec<u8>),
}

/// What the attributes are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The root: the whole torrent.
    Torrent,
    /// A file: its index in the info dictionary.
    File(usize),
    /// Something that has no attributes.
    Nothing,
}

/// The value of an attribute. `size` is the room there is for it, 0 to ask for its length.
///
/// # Errors
/// `ENODATA` if there is no such attribute, `ERANGE` if there is not enough room, and `EOPNOTSUPP` if
/// there is none of its kind: then programs that look for access lists and labels of every file, as ls
/// does, do not go on asking.
pub fn get(content: &dyn Content, of: Of, name: &[u8], size: u32) -> Result<Answer, Errno> {
    if !name.starts_with(b"user.") {
        return Err(absence(name));
    }
    let info = content.info();
    let (file, total) = match of {
        Of::Torrent => (None, info.geometry.payload()),
        Of::File(file) => (Some(file), info.files.get(file).map_or(0, |file| file.length)),
        Of::Nothing => return Err(Errno::ENODATA),
    };
    let value = match name {
        INFOHASH => info.info_hash.to_string(),
        PROGRESS => format!("{}/{total}", content.verified_bytes(file)),
        _ => return Err(Errno::ENODATA),
    };
    answer(value.into_bytes(), size)
}

/// The names of all attributes, each ended by a NUL. `size` as for [`get`].
///
/// # Errors
/// `ERANGE` if there is not enough room.
pub fn list(of: Of, size: u32) -> Result<Answer, Errno> {
    let names = match of {
        Of::Torrent | Of::File(_) => [INFOHASH, b"\0", PROGRESS, b"\0"].concat(),
        Of::Nothing => Vec::new(),
    };
    answer(names, size)
}

/// What is said of an attribute that nothing has; see [`get`].
pub fn absence(name: &[u8]) -> Errno {
    if name.starts_with(b"user.") { Errno::ENODATA } else { Errno::EOPNOTSUPP }
}

/// The value of an attribute of a folder that waits for its torrent; `size` as for [`get`].
///
/// # Errors
/// As for [`get`].
pub fn of_waiting(why: &str, name: &[u8], size: u32) -> Result<Answer, Errno> {
    match name {
        STATE => answer(why.as_bytes().to_vec(), size),
        name => Err(absence(name)),
    }
}

/// The names of the attributes of such a folder; `size` as for [`get`].
///
/// # Errors
/// As for [`list`].
pub fn list_of_waiting(size: u32) -> Result<Answer, Errno> {
    answer([STATE, b"\0"].concat(), size)
}

fn answer(value: Vec<u8>, size: u32) -> Result<Answer, Errno> {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => Ok(Answer::Length(length)),
        Ok(length) if length <= size => Ok(Answer::Value(value)),
        _ => Err(Errno::ERANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_for_first_and_then_filled() {
        let names = b"user.p2pfs.infohash\0user.p2pfs.progress\0".to_vec();
        assert_eq!(list(Of::Torrent, 0), Ok(Answer::Length(40)));
        assert_eq!(list(Of::Torrent, 39), Err(Errno::ERANGE));
        assert_eq!(list(Of::Torrent, 40), Ok(Answer::Value(names)));
        assert_eq!(list(Of::Nothing, 0), Ok(Answer::Length(0)));
    }
}
