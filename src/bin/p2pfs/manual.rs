//! The manual page p2pfs(1), made of the definition of the command line.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use p2pfs::rpc::{DAEMON_KEYS, MOUNT_KEYS};

use super::args::Cli;

/// Prints a page.
pub fn print(page: &str) -> Result<()> {
    match page {
        "p2pfs" => command(),
        "p2pfs.toml" => settings(),
        page => bail!("{page}: no page that is made here; there are p2pfs and p2pfs.toml"),
    }
}

/// The command, then a section for each verb.
fn command() -> Result<()> {
    let mut cli = Cli::command();
    cli.build();
    let mut page = Vec::new();
    let man = Man::new(cli.clone()).section("1").date("");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    for verb in
        cli.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        section(&mut page, verb)?;
        for verb in verb.get_subcommands().filter(|verb| verb.get_name() != "help") {
            section(&mut page, verb)?;
        }
    }
    man.render_options_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    page.extend_from_slice(TAIL.as_bytes());
    io::stdout().write_all(&page)?;
    Ok(())
}

/// The section of a verb; its own sections become parts of it.
fn section(page: &mut Vec<u8>, verb: &Command) -> Result<()> {
    let mut text = Vec::new();
    let man = Man::new(verb.clone());
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    // The name by which it is called, such as `p2pfs sim dht`, without the program's.
    let name = verb.get_bin_name().unwrap_or(verb.get_name()).trim_start_matches("p2pfs ");
    writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
    let text = String::from_utf8(text)?;
    for line in text.lines().filter(|line| !line.starts_with(".ie") && !line.starts_with(".el")) {
        // The parts speak for themselves; a heading each would bury the verbs.
        writeln!(page, "{}", if line.starts_with(".SH ") { ".PP" } else { line })?;
    }
    Ok(())
}

/// p2pfs.toml(5): a paragraph for each key, which is a flag of `mount`.
fn settings() -> Result<()> {
    let cli = Cli::command();
    let mount = cli.find_subcommand("mount").context("there is no mount")?;
    let mut page = SETTINGS_HEAD.to_owned();
    for (title, keys) in
        [("KEYS OF THE DAEMON", DAEMON_KEYS.as_slice()), ("KEYS OF EACH MOUNT", &MOUNT_KEYS)]
    {
        page.push_str(&format!(".SH \"{title}\"\n"));
        for key in keys {
            let flag = mount.get_arguments().find(|flag| flag.get_long() == Some(key));
            let flag = flag.with_context(|| format!("{key}: no flag of mount"))?;
            let value = flag.get_value_names().and_then(|names| names.first());
            let value = value.map_or("", |name| if *name == "BOOL" { "true" } else { name });
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let escape = |text: &str| text.replace('-', "\\-").replace('\'', "\\(aq");
            page.push_str(&format!(
                ".TP\n\\fB{}\\fR = \\fI{value}\\fR\n{}\n",
                escape(key),
                escape(&help)
            ));
        }
    }
    page.push_str(SETTINGS_TAIL);
    io::stdout().write_all(page.as_bytes())?;
    Ok(())
}

/// The beginning of p2pfs.toml(5).
const SETTINGS_HEAD: &str = r#".TH p2pfs.toml 5 "" "p2pfs" "File Formats Manual"
.SH NAME
p2pfs.toml \- settings of p2pfs
.SH DESCRIPTION
What the flags of
.BR p2pfs (1)
and
.BR p2pfs-mountd (8)
say unless they are given, in TOML under the same names, without sections. A flag wins over the file,
the file over what is built in. A number or a text is written as the flag has it, a text in quotes; a
flag that needs no value is
.B true
or
.BR false ;
what is repeatable is a list. A key that is not known, or whose value makes no sense, is an error that
names it.
.PP
What the file turns on, a flag turns off for once:
.BR \-\-no\-dht=false ,
.BR \-\-on\-demand=false ,
or
.B \-o no_dht=false
for
.BR mount (8).
.PP
The daemon reads its keys when it starts, so a change is seen by the next daemon; on SIGHUP it reads
.BR upload\-limit ,
.B download\-limit
and
.B log
anew. The keys of mounts are read by each
.BR "p2pfs mount" .
.SH EXAMPLE
.nf
.RS
port = 6881
listen = ["192.0.2.1", "2001:db8::1"]
upload\-limit = "2M"
no\-lsd = true
read\-timeout = 600
umask = "027"
.RE
.fi
"#;

/// The end of p2pfs.toml(5).
const SETTINGS_TAIL: &str = r#".SH FILES
.TP
\fI~/.config/p2pfs/p2pfs.toml\fR, or below \fI$XDG_CONFIG_HOME\fR
The settings of a user.
.TP
\fI/etc/p2pfs.toml\fR
Those of root.
.PP
.B \-\-config
.I FILE
or
.B P2PFS_CONFIG
in the environment names another.
.SH "SEE ALSO"
.BR p2pfs (1),
.BR p2pfs-mountd (8),
.BR systemd.exec (5)
"#;

/// What the definition does not say.
const TAIL: &str = r#".SH "EXIT STATUS"
0 if it is done, 1 if it failed, 2 if the command line makes no sense. A failure is one line on
standard error.
.SH ENVIRONMENT
.TP
\fBP2PFS_LOG\fR
What the daemon logs, as \fB\-\-log\fR has it, where no flag says it.
.TP
\fBXDG_RUNTIME_DIR\fR, \fBXDG_CACHE_HOME\fR
Where the socket and the cache are, for users other than root.
.TP
\fBP2PFS_SOCKET\fR
The socket of the daemon to use, instead of the user's own.
.TP
\fBP2PFS_CONFIG\fR
The file of settings, instead of the user's own.
.SH COMPLETIONS
.nf
.RS
p2pfs completions bash >~/.local/share/bash-completion/completions/p2pfs
p2pfs completions zsh >~/.zfunc/_p2pfs
p2pfs completions fish >~/.config/fish/completions/p2pfs.fish
.RE
.fi
.SH FILES
.TP
\fI~/.config/p2pfs/p2pfs.toml\fR, \fI/etc/p2pfs.toml\fR
The settings.
.TP
\fI~/.cache/p2pfs\fR, \fI/var/cache/p2pfs\fR
The cache.
.TP
\fI$XDG_RUNTIME_DIR/p2pfs/socket\fR, \fI/run/p2pfs/socket\fR
The socket of the daemon; its log is beside it.
.SH "SEE ALSO"
.BR p2pfs (7),
.BR p2pfs.toml (5),
.BR p2pfs-mountd (8),
.BR fusermount3 (1)
"#;
