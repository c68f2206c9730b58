//! `-o`: the options of `p2pfs mount` as mount(8) and fstab write them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use super::mount::Mount;
use p2pfs::rpc::{Config, ErrorKind, MOUNT_KEYS, RpcError};

/// The options of ours that `-o` knows, as `name` or `name=value`.
const OURS: [&str; 29] = [
    "socket",
    "config",
    "peer",
    "tracker",
    "port",
    "listen",
    "no-lsd",
    "data-dir",
    "on-demand",
    "folders",
    "until-done",
    "seed-until",
    "keep",
    "use-data",
    "select",
    "timeout",
    "read-timeout",
    "no-seed",
    "upload-limit",
    "download-limit",
    "no-pex",
    "no-dht",
    "dht-bootstrap",
    "metrics",
    "log",
    "foreground",
    "cache",
    "cache-size",
    "cache-free",
];

/// The flags of ours among `-o` values, as command-line flags, and what is left for the mount.
pub fn split(values: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut flags, mut rest) = (Vec::new(), Vec::new());
    for option in values.iter().flat_map(|value| value.split(',')) {
        let name = option.split('=').next().unwrap_or_default().replace('_', "-");
        let value = option.split_once('=').map(|(_, value)| value);
        match value {
            _ if !OURS.contains(&name.as_str()) => rest.push(option.to_owned()),
            Some(value) => flags.push(format!("--{name}={value}")),
            None => flags.push(format!("--{name}")),
        }
    }
    (flags, rest)
}

/// The words of `-o` alone, or of the file of settings, parsed as flags.
#[derive(Parser)]
#[command(name = "-o", no_binary_name = true, disable_help_flag = true)]
pub struct Flags {
    #[arg(long)]
    pub socket: Option<PathBuf>,
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub mount: Mount,
}

/// `mount` with the flags of ours that are among its `-o` values, and the daemon that they name.
pub fn apply(mount: Mount) -> Result<Flags, RpcError> {
    let (flags, rest) = split(&mount.options);
    let words = flags.iter().map(OsString::from).chain(positional(&mount));
    let mut said = Flags::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line).replace("--", "");
        RpcError::new(
            ErrorKind::Usage,
            format_args!("-o {}: {line}", flags.join(",").replace("--", "")),
        )
    })?;
    said.mount = mount.or(said.mount);
    said.mount.options = rest;
    Ok(said)
}

/// `mount` with what the file of settings says of mounts.
pub fn with_file(mount: Mount, file: &Config) -> Result<Mount, RpcError> {
    let mut file = file.read::<Flags>(&MOUNT_KEYS, &positional(&mount))?.mount;
    // What contradicts a flag gives way to it.
    if mount.seed_until.is_some() {
        (file.on_demand, file.no_seed) = (None, None);
    }
    Ok(mount.or(file))
}

/// The words behind the flags.
fn positional(mount: &Mount) -> Vec<OsString> {
    let sources = mount.sources.iter().map(OsString::from);
    std::iter::once("--".into())
        .chain(sources)
        .chain([mount.dir.clone().into_os_string()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(options: &[&str]) -> Result<Mount, RpcError> {
        let mut words = vec!["magnet:?", "/mnt", "--on-demand", "--port=2"];
        options.iter().for_each(|option| words.extend(["-o", option]));
        apply(Flags::try_parse_from(words).unwrap().mount).map(|said| said.mount)
    }

    #[test]
    fn our_options_are_taken_and_the_others_left() {
        let mount = mount(&["ro,seed_until,until_done,uid=5", "select=*.mkv,port=7"]).unwrap();
        assert!(mount.until_done && mount.on_demand == Some(true) && mount.seed_until.is_some());
        assert_eq!(mount.select, ["*.mkv"]);
        assert_eq!(mount.network.settings.port, Some(2), "the flag wins");
        assert_eq!(mount.options, ["ro", "uid=5"]);
    }

    #[test]
    fn what_a_file_says_is_taken_back() {
        let options = mount(&["no_dht=false,on_demand=false,no_seed"]).unwrap();
        assert_eq!(options.network.settings.no_dht, Some(false));
        assert_eq!((options.on_demand, options.no_seed), (Some(true), Some(true)), "the flag wins");
    }

    #[test]
    fn a_wrong_value_is_one_line_of_usage() {
        let error = mount(&["port=x"]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        assert_eq!(error.message.lines().count(), 1);
    }
}
