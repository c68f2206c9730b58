//! Mount options, ours and those of mount(8) and fstab.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::mount::MsFlags;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Where; a directory that exists.
    pub dir: PathBuf,
    /// A path that leads there and waits for nobody, if it is an automount ([`super::automount`]).
    pub automount: Option<PathBuf>,
    /// What the table of mounts shows as the source, if no `fsname=` is given.
    pub source: String,
    /// Let other users in.
    pub allow_other: bool,
    /// The owner of everything; who mounts, if not given.
    pub uid: Option<u32>,
    /// The group of everything; that of who mounts, if not given.
    pub gid: Option<u32>,
    /// Permission bits to take away.
    pub umask: Option<u32>,
    /// The values of `-o`, each of them options separated by commas.
    pub extra: Vec<String>,
    /// When files and folders were changed for which the torrent does not say; now without.
    pub time: Option<SystemTime>,
    /// How long a buffered read may wait before it fails; for ever without.
    pub read_timeout: Option<Duration>,
}

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error("mount option {0:?} is not known; see p2pfs(1) for those that are")]
    Unknown(String),
    /// Its value is no number of the kind it wants.
    #[error("mount option {option:?} needs {wants}")]
    Value {
        /// The option with its value.
        option: String,
        /// What it wants.
        wants: &'static str,
    },
    /// A mount cannot be changed.
    #[error("a p2pfs mount cannot be remounted; unmount it and mount it again")]
    Remount,
}

/// What the options come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) flags: MsFlags,
    pub(super) source: String,
    pub(super) allow_other: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) umask: Option<u32>,
    /// Mount over a directory that is not empty.
    pub(super) nonempty: bool,
}

impl MountOptions {
    /// Takes `extra` apart; what comes later wins.
    pub(super) fn resolve(&self) -> Result<Resolved, OptionError> {
        let mut resolved = Resolved {
            flags: MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            source: self.source.clone(),
            allow_other: self.allow_other,
            uid: self.uid,
            gid: self.gid,
            umask: self.umask,
            nonempty: false,
        };
        let options = self.extra.iter().flat_map(|options| options.split(','));
        for option in options.map(str::trim).filter(|option| !option.is_empty()) {
            resolved.apply(option)?;
        }
        resolved.source = clean(&resolved.source);
        Ok(resolved)
    }
}

impl Resolved {
    fn apply(&mut self, option: &str) -> Result<(), OptionError> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        match (key, value) {
            ("allow_other", None) => self.allow_other = true,
            ("nonempty", None) => self.nonempty = true,
            ("noexec", None) => self.flags |= MsFlags::MS_NOEXEC,
            ("exec", None) => self.flags -= MsFlags::MS_NOEXEC,
            ("noatime", None) => self.flags |= MsFlags::MS_NOATIME,
            ("remount", None) => return Err(OptionError::Remount),
            ("fsname", Some(name)) => self.source = name.to_owned(),
            ("uid", Some(uid)) => self.uid = Some(number(option, uid)?),
            ("gid", Some(gid)) => self.gid = Some(number(option, gid)?),
            ("umask", Some(umask)) => self.umask = Some(octal(option, umask)?),
            // Always so: the files are read-only, owned as told, and no program gains rights by
            // them. mount(8) says rw, dev and suid without being asked to.
            ("ro" | "rw" | "defaults" | "default_permissions", None)
            | ("nosuid" | "suid" | "nodev" | "dev", None)
            | ("atime" | "diratime" | "nodiratime" | "relatime" | "norelatime", None)
            | ("strictatime" | "nostrictatime" | "lazytime" | "nolazytime", None)
            | ("sync" | "async" | "dirsync" | "silent" | "loud" | "mand" | "nomand", None) => {}
            // For mount(8), fstab and systemd.
            ("_netdev" | "nofail" | "auto" | "noauto", None)
            | ("user" | "nouser" | "users" | "owner" | "group", _) => {}
            ("subtype", Some("p2pfs")) => {}
            _ if key.starts_with("x-") || key.starts_with("X-") || key == "comment" => {}
            _ => return Err(OptionError::Unknown(option.to_owned())),
        }
        Ok(())
    }
}

fn number(option: &str, value: &str) -> Result<u32, OptionError> {
    let wants = "a number, such as the output of id -u or id -g";
    value.parse().map_err(|_| OptionError::Value { option: option.to_owned(), wants })
}

fn octal(option: &str, value: &str) -> Result<u32, OptionError> {
    let wants = "an octal number from 0 to 777";
    match u32::from_str_radix(value, 8) {
        Ok(umask) if umask <= 0o777 => Ok(umask),
        _ => Err(OptionError::Value { option: option.to_owned(), wants }),
    }
}

/// A name that is safe among mount options and in tables: commas would begin another option.
fn clean(source: &str) -> String {
    let safe = |c: char| if c.is_control() || c == ',' || c == '\\' { '_' } else { c };
    let name: String = source.chars().map(safe).take(200).collect();
    if name.is_empty() { "p2pfs".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(extra: &str) -> Result<Resolved, OptionError> {
        MountOptions { extra: vec![extra.to_owned()], ..MountOptions::default() }.resolve()
    }

    #[test]
    fn what_mount_8_adds_is_accepted_and_the_mount_stays_read_only() {
        let resolved = resolve("rw,dev,suid,noexec,_netdev,nofail,x-systemd.automount").unwrap();
        let expected = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        assert_eq!(resolved.flags, expected | MsFlags::MS_NOEXEC);
    }

    #[test]
    fn values_are_read() {
        let resolved = resolve("uid=1000,gid=100,umask=027,allow_other,fsname=a").unwrap();
        assert_eq!(
            (resolved.uid, resolved.gid, resolved.umask),
            (Some(1000), Some(100), Some(0o27))
        );
        assert!(resolved.allow_other);
        assert_eq!(resolved.source, "a");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(resolve("ro,foo=1"), Err(OptionError::Unknown("foo=1".into())));
        assert_eq!(resolve("remount,ro"), Err(OptionError::Remount));
        for bad in ["uid=root", "uid=-1", "umask=8", "umask=1000", "umask="] {
            assert!(matches!(resolve(bad), Err(OptionError::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn a_source_cannot_add_options() {
        let options = MountOptions { source: "a,dev\\,\n".into(), ..MountOptions::default() };
        assert_eq!(options.resolve().unwrap().source, "a_dev___");
        assert_eq!(MountOptions::default().resolve().unwrap().source, "p2pfs");
    }
}
