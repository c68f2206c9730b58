//! The manual page p2pfs(1), made of the definition of the command line.

use std::io::{self, Write};

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::Cli;

/// Prints the page: the command, then a section for each verb.
pub fn print() -> Result<()> {
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

/// What the definition does not say.
const TAIL: &str = r#".SH "EXIT STATUS"
0 if it is done, 1 if it failed, 2 if the command line makes no sense. A failure is one line on
standard error.
.SH ENVIRONMENT
.TP
\fBP2PFS_LOG\fR
What the daemon logs, such as \fBdebug\fR or \fBp2pfs::engine=trace\fR (default: \fBwarn\fR).
.TP
\fBXDG_RUNTIME_DIR\fR, \fBXDG_CACHE_HOME\fR
Where the socket and the cache are, for users other than root.
.SH FILES
.TP
\fI~/.cache/p2pfs\fR, \fI/var/cache/p2pfs\fR
The cache.
.TP
\fI$XDG_RUNTIME_DIR/p2pfs/socket\fR, \fI/run/p2pfs/socket\fR
The socket of the daemon; its log is beside it.
.SH "SEE ALSO"
.BR p2pfs (7),
.BR p2pfs-mountd (8),
.BR fusermount3 (1)
"#;
