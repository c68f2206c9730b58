//! Who uses a mount, for the one who cannot unmount it.

use std::fs;
use std::path::{Path, PathBuf};

use p2pfs::fs::mountinfo::mounts;

/// The most that are named.
const MAX_NAMED: usize = 5;

/// What holds on to the mount at `dir`, as far as we may look: processes, loop devices and mounts on top
/// of it. Nothing in the mount itself is asked.
pub fn users_of(dir: &Path) -> Vec<String> {
    let mut users: Vec<_> = processes().filter_map(|process| user(&process, dir)).collect();
    users.extend(loop_devices(dir));
    let inner = mounts().unwrap_or_default().into_iter().map(|mount| mount.dir);
    let inner = inner.filter(|other| other != dir && other.starts_with(dir));
    users.extend(inner.map(|other| format!("the mount at {}", other.display())));
    let more = users.len().saturating_sub(MAX_NAMED);
    users.truncate(MAX_NAMED);
    if more > 0 {
        users.push(format!("{more} more"));
    }
    users
}

/// The folders of all processes but this one in /proc.
fn processes() -> impl Iterator<Item = PathBuf> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let number = |name: &std::ffi::OsStr| name.to_str()?.parse::<u32>().ok();
    let others = entries.filter(move |e| number(&e.file_name()).is_some_and(|pid| pid != own));
    others.map(|entry| entry.path())
}

/// A process by name and number, if it is in the mount, or has something of it open.
fn user(process: &Path, dir: &Path) -> Option<String> {
    let leads = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    let open = |kind: &str| {
        let mut links = fs::read_dir(process.join(kind)).into_iter().flatten().flatten();
        links.any(|link| leads(link.path()))
    };
    let uses = ["cwd", "root", "exe"].iter().any(|link| leads(process.join(link)))
        || open("fd")
        || open("map_files");
    let name = fs::read_to_string(process.join("comm")).ok().filter(|_| uses)?;
    // It is a command of ours that asks.
    if name == "p2pfs\n" {
        return None;
    }
    Some(format!("{} {}", name.trim_end(), process.file_name()?.display()))
}

/// Loop devices of files in the mount.
fn loop_devices(dir: &Path) -> impl Iterator<Item = String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter_map(move |device| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let name = device.file_name().into_string().ok()?;
        Path::new(file.trim_end_matches('\n')).starts_with(dir).then(|| format!("/dev/{name}"))
    })
}
