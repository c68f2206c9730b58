//! The table of mounts (`/proc/self/mountinfo`), so that only our own mount is ever unmounted.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem type of our mounts, as the table has it.
pub const FS_TYPE: &str = "fuse.p2pfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number; used again only after it is gone.
    pub id: u64,
    /// The number of the mount that this one covers a directory of.
    pub parent: u64,
    /// The device's number as `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// The filesystem type.
    pub fs_type: String,
    /// What is mounted.
    pub source: OsString,
    /// The filesystem's own options.
    pub options: String,
}

/// All mounts of this process's namespace.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount at a directory (an absolute path without links), if one is there.
pub fn mount_at(dir: &Path) -> io::Result<Option<MountEntry>> {
    let mut here: Vec<_> = mounts()?.into_iter().filter(|mount| mount.dir == dir).collect();
    let top = here.iter().position(|mount| here.iter().all(|other| other.parent != mount.id));
    Ok(top.map(|top| here.swap_remove(top)))
}

/// Reads a line (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| Some(std::str::from_utf8(field).ok()?.to_owned());
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.next()?)?;
    let dir = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = text(rest.next()?)?;
    let source = unescape(rest.next()?);
    let options = text(rest.next().unwrap_or_default()).unwrap_or_default();
    Some(MountEntry { id, parent, device, dir: dir.into(), fs_type, source, options })
}

/// Undoes the table's `\ooo` for spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = br"98 33 0:55 / /mnt/a\040b\134c rw,relatime shared:1 master:7 - fuse.p2pfs a\011b ro,user_id=0";
        let expected = MountEntry {
            id: 98,
            parent: 33,
            device: "0:55".into(),
            dir: r"/mnt/a b\c".into(),
            fs_type: "fuse.p2pfs".into(),
            source: "a\tb".into(),
            options: "ro,user_id=0".into(),
        };
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn a_line_that_is_none_is_left_out() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"98 33 0:55 / /mnt rw,relatime"), None);
    }

    #[test]
    fn what_this_machine_has_is_read_in_full() {
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        for line in lines {
            assert!(parse(line).is_some(), "{}", line.escape_ascii());
        }
        assert!(!mounts().unwrap().is_empty());
        assert!(mount_at(Path::new("/proc")).unwrap().is_some());
        assert_eq!(mount_at(Path::new("/no/such/place")).unwrap(), None);
    }
}
