//! The plot of a run: what share each node had, by time.

use std::fmt::Write;

use super::plan::Role;
use super::report::Report;

/// The picture's size and the room left for its axes.
const SIZE: (f64, f64) = (800.0, 480.0);
const MARGIN: f64 = 48.0;

/// Curves beyond this would hide one another.
const MAX_CURVES: usize = 200;

impl Report {
    /// The plot as an SVG document.
    pub fn plot(&self) -> String {
        let end = self.progress.last().map_or(1.0, |(at, _)| *at).max(1.0);
        let x = |at: f64| MARGIN + at / end * (SIZE.0 - 2.0 * MARGIN);
        let y = |share: f64| SIZE.1 - MARGIN - share * (SIZE.1 - 2.0 * MARGIN);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{MARGIN}\" y=\"24\">{}, seed {}: last done {:.1} s, bound {:.1} s</text>\n",
            SIZE.0,
            SIZE.1,
            self.scenario,
            self.seed,
            self.last_s.unwrap_or(end),
            self.bound_s
        );
        for tenth in (0..=10).step_by(2) {
            let share = f64::from(tenth) / 10.0;
            let (left, right, at) = (x(0.0), x(end), y(share));
            line(&mut svg, (left, at), (right, at), "#ddd");
            text(&mut svg, (8.0, at + 4.0), &format!("{} %", tenth * 10));
            text(
                &mut svg,
                (x(end * share) - 12.0, SIZE.1 - 24.0),
                &format!("{:.0} s", end * share),
            );
        }
        line(&mut svg, (x(self.bound_s), y(0.0)), (x(self.bound_s), y(1.0)), "#c00");
        let curves = self.peers.iter().enumerate().filter(|(_, p)| p.role != Role::Seed);
        for (index, peer) in curves.take(MAX_CURVES) {
            let points = self.progress.iter().filter_map(|(at, shares)| {
                Some(format!("{:.1},{:.1}", x(*at), y(f64::from(*shares.get(index)?))))
            });
            let points = points.collect::<Vec<_>>().join(" ");
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.6\" points=\"{points}\"/>",
                colour(peer.role)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn colour(role: Role) -> &'static str {
    match role {
        Role::Seed => "#080",
        Role::Leecher => "#06c",
        Role::Reader => "#0a8",
        Role::FreeRider => "#e80",
        Role::Liar | Role::Staller | Role::HaveFlooder => "#c0c",
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, at: (f64, f64), text: &str) {
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{text}</text>", at.0, at.1);
}
