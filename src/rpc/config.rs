//! `p2pfs.toml`: what the flags say unless they are given, under the same names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use toml::{Table, Value};

use super::{ErrorKind, RpcError, Settings};

/// The keys that a daemon reads when it starts: those of [`Settings`].
pub const DAEMON_KEYS: [&str; 13] = [
    "port",
    "listen",
    "data-dir",
    "cache-size",
    "cache-free",
    "upload-limit",
    "download-limit",
    "no-lsd",
    "no-pex",
    "no-dht",
    "dht-bootstrap",
    "metrics",
    "log",
];

/// The keys that `p2pfs mount` reads each time.
pub const MOUNT_KEYS: [&str; 10] = [
    "peer",
    "tracker",
    "on-demand",
    "timeout",
    "read-timeout",
    "no-seed",
    "allow-other",
    "uid",
    "gid",
    "umask",
];

/// What a file of settings says.
#[derive(Clone, Debug, Default)]
pub struct Config {
    file: PathBuf,
    /// Each key with its flags.
    entries: Vec<(String, Vec<OsString>)>,
}

/// The settings of a daemon alone, as flags.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Daemon {
    #[command(flatten)]
    settings: Settings,
}

impl Config {
    /// Reads the file that was named, or that of this user, which need not exist.
    ///
    /// # Errors
    /// One line that names the file, the key and what to do.
    pub fn load(named: Option<&Path>) -> Result<Self, RpcError> {
        let Some(file) = named.map(Path::to_owned).or_else(of_this_user) else {
            return Ok(Self::default());
        };
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(usage(
                &file,
                format_args!("cannot be read ({error}); name another with --config"),
            )),
        }
    }

    fn parse(file: PathBuf, text: &str) -> Result<Self, RpcError> {
        let table: Table = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            usage(&file, format_args!("line {line}: {}", error.message()))
        })?;
        let known = |key: &str| DAEMON_KEYS.contains(&key) || MOUNT_KEYS.contains(&key);
        let mut entries = Vec::new();
        for (key, value) in table {
            if !known(&key) {
                let what =
                    format_args!("{key}: no such key; see p2pfs.toml(5) for those there are");
                return Err(usage(&file, what));
            }
            let flags = flags(&key, &value)
                .map_err(|wants| usage(&file, format_args!("{key}: {wants} is needed")))?;
            entries.push((key, flags));
        }
        let config = Self { file, entries };
        // Whoever reads the file finds what is wrong in it.
        config.settings()?;
        Ok(config)
    }

    /// What the daemon's keys say.
    pub fn settings(&self) -> Result<Settings, RpcError> {
        let settings = self.read::<Daemon>(&DAEMON_KEYS, &[])?.settings;
        if let Some(what) = settings.contradiction() {
            return Err(usage(&self.file, format_args!("{}", what.replace("--", ""))));
        }
        match &settings.data_dir {
            Some(dir) if dir.is_relative() => Err(usage(
                &self.file,
                format_args!("data-dir: {}: a path from the root (/) is needed", dir.display()),
            )),
            _ => Ok(settings),
        }
    }

    /// What `keys` say, read as the flags of `T` are, with `rest` behind them.
    pub fn read<T: Parser>(&self, keys: &[&str], rest: &[OsString]) -> Result<T, RpcError> {
        let entries = || self.entries.iter().filter(|(key, _)| keys.contains(&key.as_str()));
        let words =
            |flags: Vec<OsString>| T::try_parse_from(flags.into_iter().chain(rest.iter().cloned()));
        for (key, flags) in entries() {
            words(flags.clone()).map_err(|error| self.wrong(key, &error))?;
        }
        let all = entries().flat_map(|(_, flags)| flags.iter().cloned()).collect();
        words(all).map_err(|error| self.wrong("keys", &error))
    }

    fn wrong(&self, key: &str, error: &clap::Error) -> RpcError {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line).replace("--", "");
        usage(&self.file, format_args!("{key}: {line}"))
    }
}

fn usage(file: &Path, what: std::fmt::Arguments<'_>) -> RpcError {
    RpcError::new(ErrorKind::Failed, format_args!("{}: {what}", file.display()))
}

/// A value as flags; what it should be if it is nothing of the kind.
fn flags(key: &str, value: &Value) -> Result<Vec<OsString>, &'static str> {
    let flag = |value: &dyn std::fmt::Display| Ok(vec![format!("--{key}={value}").into()]);
    match value {
        Value::Boolean(value) => flag(value),
        // Written without quotes it would be taken for a decimal number.
        Value::Integer(_) if key == "umask" => Err("an octal number in quotes, such as \"027\","),
        Value::Integer(number) => flag(number),
        Value::String(text) => flag(text),
        Value::Array(values) => {
            let each = values.iter().map(|value| match value {
                Value::Array(_) => Err("a list of texts"),
                value => flags(key, value),
            });
            Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => {
            Err("a text in quotes, a whole number, true, false, or a list of texts")
        }
    }
}

/// Where this user's file is, whether it exists or not.
fn of_this_user() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some("/etc/p2pfs.toml".into());
    }
    let folder =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || folder("HOME").map(|home| home.join(".config"));
    Some(folder("XDG_CONFIG_HOME").or_else(home)?.join("p2pfs/p2pfs.toml"))
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        Config::parse("/c.toml".into(), text).map_err(|error| error.message)
    }

    #[test]
    fn the_daemons_keys_are_its_flags() {
        let command = Settings::augment_args(clap::Command::new(""));
        let flags: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
        assert_eq!(flags, DAEMON_KEYS);
    }

    #[test]
    fn values_are_read_as_flags_are() {
        let text = "port = 7\nlisten = [\"127.0.0.1\", \"::1\"]\nupload-limit = \"2M\"\n\
                    no-lsd = true\nno-pex = false\ntracker = \"udp://t:1\"";
        let settings = config(text).unwrap().settings().unwrap();
        assert_eq!((settings.port, settings.upload_limit), (Some(7), Some(2 << 20)));
        assert_eq!(settings.listen.len(), 2);
        assert_eq!((settings.no_lsd, settings.no_pex), (Some(true), Some(false)));
    }

    #[test]
    fn what_is_wrong_is_one_line_with_file_and_key() {
        for (text, named) in [
            ("port = 7\nport", "line 2"),
            ("prot = 7", "prot: no such key"),
            ("port = 0", "port: "),
            ("port = true", "port: "),
            ("port = false", "port: "),
            ("no-dht = true\ndht-bootstrap = \"a:1\"", "leave one away"),
            ("no-dht = \"yes\"", "no-dht: "),
            ("[mount]\nport = 1", "mount: no such key"),
            ("listen = [[1]]", "listen: "),
            ("umask = 27", "umask: "),
            ("data-dir = \"cache\"", "data-dir: "),
            ("upload-limit = 1.5", "upload-limit: "),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with("/c.toml: ") && error.contains(named), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = config("port = 7\nno-dht = true\nlisten = \"::1\"").unwrap().settings().unwrap();
        let flags =
            Settings { port: Some(9), dht_bootstrap: vec!["a:1".into()], ..Settings::default() };
        let both = flags.or_file(file);
        assert_eq!((both.port, both.no_dht, both.listen.len()), (Some(9), None, 1));
        assert_eq!(both.dht_bootstrap, ["a:1"]);
    }

    #[test]
    fn what_a_file_turns_off_a_flag_turns_on() {
        let file = config("no-dht = true\nno-pex = true").unwrap().settings().unwrap();
        let flags = Daemon::try_parse_from(["--no-dht=false", "--no-lsd"]).unwrap().settings;
        let both = flags.or_file(file);
        assert_eq!((both.no_dht, both.no_lsd, both.no_pex), (Some(false), Some(true), Some(true)));
    }
}
