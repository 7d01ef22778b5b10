//! Figures: what was measured, and how it is shown.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Which server a figure is of, in the order of tables.
pub(super) const SERVERS: [&str; 3] = ["campanile", "ejabberd", "mosquitto"];

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    /// The server's name.
    pub(super) server: String,
    /// What was measured.
    #[serde(rename = "figure")]
    pub(super) what: String,
    /// `plain` or `tls`.
    pub(super) transport: String,
    /// `None` where it could not be measured; the notes say why.
    pub(super) value: Option<f64>,
    /// Its unit.
    pub(super) unit: String,
    /// How many connections, logins, deliveries or messages it is the mean or quantile of.
    pub(super) n: u64,
    /// How it came to be.
    pub(super) notes: String,
}

impl Figure {
    /// The value as people read it.
    fn shown(&self) -> String {
        let Some(value) = self.value else { return self.notes.clone() };
        format!("{} {}", rounded(value), self.unit)
    }
}

/// A whole number as a figure.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

/// Three digits that count, or all before the point.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        above if above >= 100.0 => 0,
        above if above >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// What is in a row of the table: a figure of some transport, of each server.
struct Row<'a> {
    what: &'a str,
    transport: &'a str,
    of: [Option<&'a Figure>; SERVERS.len()],
}

fn rows(figures: &[Figure]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for figure in figures {
        let Some(column) = SERVERS.iter().position(|name| *name == figure.server) else { continue };
        let at = rows.iter().position(|row| row.what == figure.what && row.transport == figure.transport);
        let at = at.unwrap_or_else(|| {
            rows.push(Row { what: &figure.what, transport: &figure.transport, of: [None; SERVERS.len()] });
            rows.len() - 1
        });
        rows[at].of[column] = Some(figure);
    }
    rows
}

/// How many times our figure a peer's is; empty unless both were measured.
fn ratio(row: &Row<'_>, peer: usize) -> String {
    let value = |column: usize| row.of[column].and_then(|figure| figure.value);
    match (value(0), value(peer)) {
        (Some(ours), Some(theirs)) if ours > 0.0 => format!("{}×", rounded(theirs / ours)),
        _ => String::new(),
    }
}

/// The section of `docs/benchmarks.md`: a table with all servers side by side, and how many times ours the peers' are.
pub(super) fn markdown(figures: &[Figure]) -> String {
    let mut page = String::from(
        "| figure | | campanile | ejabberd | Mosquitto | ejabberd ÷ ours | Mosquitto ÷ ours |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows(figures) {
        let _ = write!(page, "| {} | {} |", row.what, row.transport);
        for figure in row.of {
            let _ = write!(page, " {} |", figure.map(Figure::shown).unwrap_or_default());
        }
        let _ = writeln!(page, " {} | {} |", ratio(&row, 1), ratio(&row, 2));
    }
    page
}

/// The ratios to the peers, a line each, for people; empty without peers.
pub(super) fn ratios(figures: &[Figure]) -> String {
    let mut page = String::new();
    for row in rows(figures) {
        for (peer, name) in SERVERS.iter().enumerate().skip(1) {
            let ratio = ratio(&row, peer);
            if !ratio.is_empty() {
                let _ = writeln!(page, "{} ({}): {name} has {ratio} ours", row.what, row.transport);
            }
        }
    }
    page
}

/// One figure for people, as soon as it is there.
pub(super) fn line(figure: &Figure) -> String {
    let Figure { server, what, transport, n, notes, .. } = figure;
    let shown = figure.shown();
    if figure.value.is_none() {
        return format!("{server:<10} {transport:<6} {what:<52} {shown}");
    }
    format!(
        "{server:<10} {transport:<6} {what:<52} {shown:>14}  (n={n}{}{notes})",
        if notes.is_empty() { "" } else { "; " }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(server: &str, value: Option<f64>) -> Figure {
        Figure {
            server: server.to_owned(),
            what: "idle connection".to_owned(),
            transport: "tls".to_owned(),
            value,
            unit: "KB".to_owned(),
            n: 5000,
            notes: if value.is_some() { String::new() } else { "not installed".to_owned() },
        }
    }

    #[test]
    fn peers_stand_beside_ours_with_their_ratios() {
        let figures = [figure("campanile", Some(4.5)), figure("mosquitto", Some(13.5)), figure("ejabberd", None)];
        let page = markdown(&figures);
        assert!(page.ends_with("| idle connection | tls | 4.50 KB | not installed | 13.5 KB |  | 3.00× |\n"), "{page}");
        assert_eq!(ratios(&figures), "idle connection (tls): mosquitto has 3.00× ours\n");
    }

    #[test]
    fn what_was_not_measured_has_no_number() {
        let line = line(&figure("ejabberd", None));
        assert!(line.ends_with("not installed"), "{line}");
    }
}
