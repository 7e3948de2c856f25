//! How evenly does each shipped policy spread sessions, and whom does it move when a backend goes?
//!
//! `cargo bench --package pointsman-plugins --bench policy_spread`, after `cargo xtask plugins` has made the
//! shipped plugins, prints a table. With `-- --write` the table is in `docs/policies.md` as well, and
//! a picture of it in `docs/policies.svg`. Chance has a seed, so every run says the same.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, who see its panics"
)]

use std::error::Error;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use http::{HeaderMap, HeaderValue, header};
use pointsman_config as config;
use pointsman_contract::names::PluginName;
use pointsman_contract::policy::{Candidate, ChoiceRequest, Decision, Figures, Policy};
use pointsman_plugins::generation::{Generation, GenerationSource};
use pointsman_plugins::host::PluginHost;
use pointsman_plugins::limits::Limits;
use pointsman_plugins::policy::GuestPolicy;
use pointsman_plugins::registry::{Loaded, Registry};
use serde_json::{Value, json};

const N_SESSIONS: usize = 20_000;
const N_CLIENTS: usize = 5_000;
/// Sessions that are open at once. When so many have come, one of them ends by chance whenever another
/// begins: some live long, and no policy is told which.
const N_OPEN: usize = 10_000;
const MS_BETWEEN_SESSIONS: u64 = 5;
/// What a backend takes to answer, on average; each time up to a fifth more or less.
const LATENCY_US: u32 = 1_000;

/// Each is a panel of the picture and three columns of the table.
const WEIGHTS: [[u32; 10]; 2] = [[1; 10], [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]];
const TITLES: [&str; 2] = ["Equal weights", "Weights 1 to 5"];
/// The place of the backend that goes.
const GOES: usize = 4;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The policies in the order of the table. `first` is not among them: all of its sessions are on one
/// backend, and are meant to be.
fn subjects() -> [(&'static str, &'static str, Value); 12] {
    [
        ("round_robin", "round_robin", json!({})),
        ("least_connections", "least_connections", json!({})),
        ("least_latency", "least_latency", json!({})),
        ("power_of_two", "power_of_two", json!({})),
        ("random", "random", json!({})),
        ("sticky", "sticky", json!({"secret": "of sixteen letters"})),
        ("ip_hash", "ip_hash", json!({})),
        ("rendezvous", "rendezvous", json!({})),
        ("maglev", "maglev", json!({})),
        ("consistent_hash", "consistent_hash", json!({})),
        (
            "consistent_hash, load_factor = 1.05",
            "consistent_hash",
            json!({"load_factor": 1.05}),
        ),
        (
            "consistent_hash, load_factor = 0",
            "consistent_hash",
            json!({"load_factor": 0}),
        ),
    ]
}

fn main() -> Result<()> {
    let settings = config::Plugins {
        dir: None,
        call_timeout: Duration::from_millis(10),
        memory_max_bytes: 16 << 20,
        compile_timeout: Duration::from_secs(60),
        http: config::HttpLimitsConfig::default(),
    };
    let (mut registry, _failures) = Registry::new(Limits::new(&settings).into(), &[])?;
    let host = registry.host(0);
    let mut rows = Vec::new();
    for (title, plugin, config) in subjects() {
        let generation = load(&mut registry, plugin)?;
        let simulate = |weights| Simulation::run(&generation, &config, &host, weights);
        let (equal, mixed) = (simulate(WEIGHTS[0])?, simulate(WEIGHTS[1])?);
        rows.push(Row {
            title,
            excesses: [equal.excesses, mixed.excesses],
            moved: equal.moved,
        });
    }
    let table = table(&rows);
    println!("{table}");
    if env::args().any(|word| word == "--write") {
        write(&table, &picture(&rows))?;
    }
    Ok(())
}

/// What was found of one policy.
struct Row {
    title: &'static str,
    /// By how much of its weight's share of the open sessions each backend has more than that, in the
    /// end.
    excesses: [[f64; 10]; 2],
    /// With equal weights: of the clients whose backend stayed, those who came back to another one.
    moved: f64,
}

/// Ten backends, their sessions and clients, and the policy between them.
struct Simulation {
    policy: GuestPolicy,
    random: fastrand::Rng,
    sequence: u64,
    figures: Vec<Figures>,
    /// The backend of each open session.
    open: Vec<usize>,
    clients: Vec<Client>,
}

#[derive(Clone, Default)]
struct Client {
    cookie: Option<HeaderValue>,
    backend: Option<usize>,
}

struct Spread {
    excesses: [f64; 10],
    moved: f64,
}

impl Simulation {
    fn run(
        generation: &Arc<Generation>,
        config: &Value,
        host: &PluginHost,
        weights: [u32; 10],
    ) -> Result<Spread> {
        let mut backends: Vec<Candidate> = (0..).zip(weights).map(candidate).collect();
        let mut simulation = Self {
            policy: generation.policy(config, host)?,
            random: fastrand::Rng::with_seed(20_000),
            sequence: 0,
            figures: vec![Figures::default(); backends.len()],
            open: Vec::new(),
            clients: vec![Client::default(); N_CLIENTS],
        };
        simulation.policy.try_backends_changed(&backends)?;
        for _ in 0..N_SESSIONS {
            let client = simulation.random.usize(..N_CLIENTS);
            simulation.session(client)?;
        }
        let sum: u32 = weights.iter().sum();
        let excesses = std::array::from_fn(|place| {
            let share = f64::from(simulation.figures[place].active) / N_OPEN as f64;
            share * f64::from(sum) / f64::from(weights[place]) - 1.0
        });

        backends.remove(GOES);
        simulation.policy.try_backends_changed(&backends)?;
        Ok(Spread {
            excesses,
            moved: simulation.moved_without_one()?,
        })
    }

    /// A session from its choice to its opening; for the place of its backend.
    fn session(&mut self, client: usize) -> Result<usize> {
        if self.open.len() == N_OPEN {
            let ends = self.random.usize(..N_OPEN);
            self.figures[self.open.swap_remove(ends)].active -= 1;
        }
        let mut headers = HeaderMap::new();
        if let Some(cookie) = self.clients[client].cookie.clone() {
            headers.insert(header::COOKIE, cookie);
        }
        let [_, a, b, c] = u32::try_from(client)?.to_be_bytes();
        let wants_figures = self.policy.wants().figures;
        let request = ChoiceRequest {
            sequence: self.sequence,
            random: self.random.u64(..),
            now_ms: 1_800_000_000_000 + self.sequence * MS_BETWEEN_SESSIONS,
            client_ip: IpAddr::V4(Ipv4Addr::new(10, a, b, c)),
            host: "app.example.org",
            path: "/websocket?room=lobby",
            headers: &headers,
            figures: if wants_figures { &self.figures } else { &[] },
        };
        let place = match self.policy.try_choose(&request)? {
            Decision::Prefer(place) => place,
            Decision::Ranked(places) => places[0],
            decision => return Err(format!("no backend is chosen: {decision:?}").into()),
        };
        if self.policy.wants().placed {
            let added = self.policy.placed(&request, place)?;
            if let Some((_, value)) = added.first() {
                let (pair, _) = value.split_once(';').ok_or("a cookie without attributes")?;
                self.clients[client].cookie = Some(pair.parse()?);
            }
        }
        let place = place as usize;
        self.note_opened(place);
        self.clients[client].backend = Some(place);
        self.sequence += 1;
        Ok(place)
    }

    /// As the host's `upstream::pool` does.
    fn note_opened(&mut self, place: usize) {
        let sample = self.random.u32(LATENCY_US * 4 / 5..=LATENCY_US * 6 / 5);
        let figures = &mut self.figures[place];
        figures.active += 1;
        figures.latency_us = match figures.latency_us {
            0 => sample,
            old => old - old / 8 + sample / 8,
        };
        self.open.push(place);
    }

    /// The backend at [`GOES`] is gone with its sessions, and every client comes once more.
    fn moved_without_one(&mut self) -> Result<f64> {
        let place_now = |place: usize| (place != GOES).then(|| place - usize::from(place > GOES));
        self.figures.remove(GOES);
        self.open = self.open.iter().copied().filter_map(place_now).collect();
        let (mut n_clients, mut n_moved) = (0, 0);
        for client in 0..N_CLIENTS {
            let before = self.clients[client].backend.and_then(place_now);
            let now = self.session(client)?;
            n_clients += usize::from(before.is_some());
            n_moved += usize::from(before.is_some_and(|before| before != now));
        }
        Ok(n_moved as f64 / n_clients as f64)
    }
}

fn candidate((n, weight): (u32, u32)) -> Candidate {
    Candidate {
        address: format!("10.1.0.{}:8080", n + 1),
        weight,
        labels: vec![],
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = "\
| policy | least, equal weights | most | deviation | least, weights 1 to 5 | most | deviation | moved |
| --- | --: | --: | --: | --: | --: | --: | --: |
"
    .to_owned();
    for row in rows {
        // Writing to a string cannot fail, here and below.
        let _ok = write!(table, "| `{}` |", row.title.replacen(", ", "`, `", 1));
        for excesses in &row.excesses {
            let _ok = write!(
                table,
                " {} | {} | {:.1} % |",
                signed(least(excesses)),
                signed(most(excesses)),
                100.0 * deviation(excesses)
            );
        }
        let _ok = writeln!(table, " {:.1} % |", 100.0 * row.moved);
    }
    table
}

fn least(excesses: &[f64]) -> f64 {
    excesses.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(excesses: &[f64]) -> f64 {
    excesses.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The standard deviation from 0, which is the weight's share.
fn deviation(excesses: &[f64]) -> f64 {
    let squares = excesses.iter().map(|excess| excess * excess);
    (squares.sum::<f64>() / excesses.len() as f64).sqrt()
}

fn signed(part: f64) -> String {
    match format!("{:.1}", 100.0 * part.abs()).as_str() {
        "0.0" => "0.0 %".to_owned(),
        number if part < 0.0 => format!("−{number} %"),
        number => format!("+{number} %"),
    }
}

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 24.0;
/// Where the first panel begins; names stand before.
const PANELS_X: f64 = 262.0;
const PANEL_WIDTH: f64 = 260.0;
const PANEL_GAP: f64 = 52.0;
const ROWS_Y: f64 = 72.0;
const ROW_HEIGHT: f64 = 28.0;

/// A row for each policy, a panel for each set of weights, a dot for each backend.
fn picture(rows: &[Row]) -> String {
    let farthest = rows
        .iter()
        .flat_map(|row| row.excesses.as_flattened())
        .fold(0.0, |farthest: f64, excess| farthest.max(excess.abs()));
    // Grid lines at every 10 %, and one beyond the farthest dot.
    let n_lines = (farthest * 10.0).ceil().max(1.0) as i32;
    let scale = PANEL_WIDTH / 2.0 / (f64::from(n_lines) / 10.0);
    let rows_end = ROWS_Y + ROW_HEIGHT * rows.len() as f64;
    let height = rows_end + 52.0;
    let mut picture = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-sans-serif, system-ui, sans-serif" font-size="14" role="img" aria-label="{}">
  <rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>
"##,
        description(rows)
    );
    for (n, title) in TITLES.into_iter().enumerate() {
        let middle = PANELS_X + PANEL_WIDTH / 2.0 + n as f64 * (PANEL_WIDTH + PANEL_GAP);
        let _ok = writeln!(
            picture,
            r##"  <text x="{middle}" y="34" text-anchor="middle" font-weight="600" fill="#102a43">{title}</text>"##
        );
        for line in -n_lines..=n_lines {
            let x = middle + f64::from(line) / 10.0 * scale;
            let stroke = if line == 0 { "#627d98" } else { "#e4e9ef" };
            let label = signed(f64::from(line) / 10.0).replace(".0", "");
            let _ok = writeln!(
                picture,
                r##"  <path d="M{x:.1} {}V{rows_end}" stroke="{stroke}"/><text x="{x:.1}" y="58" text-anchor="middle" font-size="11" fill="#627d98">{label}</text>"##,
                ROWS_Y - 6.0,
            );
        }
        for (row, y) in rows.iter().zip(middles()) {
            dots(&mut picture, &row.excesses[n], middle, scale, y);
        }
    }
    for (row, y) in rows.iter().zip(middles()) {
        name(&mut picture, row.title, y);
    }
    let _ok = writeln!(
        picture,
        r##"  <text x="{}" y="{}" text-anchor="end" font-size="12" fill="#627d98">each dot is one of ten backends: its open sessions against its weight's share of all</text>
</svg>"##,
        WIDTH - MARGIN,
        height - 16.0,
    );
    picture
}

/// Of the rows, from above.
fn middles() -> impl Iterator<Item = f64> {
    (0..).map(|n| ROWS_Y + ROW_HEIGHT * (f64::from(n) + 0.5))
}

fn name(picture: &mut String, title: &str, y: f64) {
    let x = PANELS_X - 16.0;
    let (name, config) = title.split_once(", ").unwrap_or((title, ""));
    let _ok = write!(
        picture,
        r##"  <text x="{x}" y="{}" text-anchor="end" fill="#243b53">{name}"##,
        y + 5.0
    );
    if !config.is_empty() {
        let _ok = write!(
            picture,
            r##" <tspan font-size="11" fill="#627d98">{config}</tspan>"##
        );
    }
    picture.push_str("</text>\n");
}

fn dots(picture: &mut String, excesses: &[f64; 10], middle: f64, scale: f64, y: f64) {
    let x = |excess: f64| middle + excess * scale;
    let _ok = write!(
        picture,
        r##"  <path d="M{:.1} {y}H{:.1}" stroke="#9fb3c8" stroke-width="2"/><g fill="#9c5400" fill-opacity="0.55">"##,
        x(least(excesses)),
        x(most(excesses)),
    );
    for &excess in excesses {
        let _ok = write!(
            picture,
            r##"<circle cx="{:.1}" cy="{y}" r="4.5"/>"##,
            x(excess)
        );
    }
    picture.push_str("</g>\n");
}

/// The picture in words, for whoever cannot see it.
fn description(rows: &[Row]) -> String {
    let rows = rows.iter().map(|row| {
        let [equal, mixed] = row.excesses.each_ref().map(|excesses| {
            let (least, most) = (least(excesses), most(excesses));
            format!("{} to {}", signed(least), signed(most))
        });
        format!(
            "{}: {equal} with equal weights, {mixed} with weights 1 to 5",
            row.title
        )
    });
    rows.collect::<Vec<_>>().join(". ")
}

const BEGIN: &str = "<!-- figures: begin -->\n";
const END: &str = "<!-- figures: end -->\n";

fn write(table: &str, picture: &str) -> Result<()> {
    let page_file = repository("docs/policies.md");
    let page = fs::read_to_string(&page_file)?;
    let (before, rest) = page
        .split_once(BEGIN)
        .ok_or("the page has no place for a table")?;
    let (_, after) = rest
        .split_once(END)
        .ok_or("the page's place for a table has no end")?;
    fs::write(page_file, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    fs::write(repository("docs/policies.svg"), picture)?;
    Ok(())
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn load(registry: &mut Registry, plugin: &str) -> Result<Arc<Generation>> {
    let path = repository("target/plugins")
        .join(plugin)
        .with_extension("wasm");
    let bytes = fs::read(&path).map_err(|error| {
        format!(
            "{}: {error}; `cargo xtask plugins` makes it",
            path.display()
        )
    })?;
    let name = PluginName::parse(plugin).unwrap();
    match registry.load(&name, bytes, GenerationSource::Embedded)? {
        Loaded::New(generation) => Ok(generation),
        Loaded::Unchanged => Err("nothing serves yet".into()),
    }
}
