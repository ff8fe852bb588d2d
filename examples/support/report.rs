//! A run as one HTML file that needs nothing else: curves, pictures, configuration, versions.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use burn_flows::record::write_atomically;
use burn_flows::{FlowError, Result};
use serde::Serialize;
use serde_json::Value;

use super::plot;
use super::run::{Metrics, PROGRESS, progress_name};

/// What a report shows.
pub struct Report<'a> {
    pub title: &'a str,
    /// The run's folder, where the pictures lie.
    pub folder: &'a Path,
    pub metrics: &'a [Metrics],
    pub device: &'a str,
    /// Temperatures of the rows of `samples.png`.
    pub temperatures: &'a [f64],
    /// Where there are classes, each has a row of samples.
    pub num_classes: Option<usize>,
    /// Temperature of the samples of each measurement.
    pub progress_temperature: f64,
    /// Whether the run is over, so that its last pictures are there.
    pub finished: bool,
}

const STYLE: &str = "\
body { font: 16px/1.5 sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em }
svg, img { max-width: 100%; height: auto } img { image-rendering: pixelated; display: block }
table { border-collapse: collapse } td, th { padding: .1em 1.5em .1em 0; text-align: left;
vertical-align: top; font-weight: normal } th { color: #666 } h2 { margin-top: 2em }";

impl Report<'_> {
    /// Writes `report.html` into the run's folder.
    pub fn write(&self, config: &impl Serialize) -> Result<()> {
        let html = self.html(&serde_json::to_value(config).expect("plain data"))?;
        write_atomically(self.folder.join("report.html"), html.as_bytes())
    }

    fn html(&self, config: &Value) -> Result<String> {
        let title = escape(self.title);
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        );
        html += &table("summary", &self.summary());
        let curves = plot::svg(self.metrics);
        let _ = write!(html, "<h2>Curves</h2>\n<div id=\"curves\">{curves}</div>\n");

        let mut progress = String::new();
        for line in self.metrics.iter().filter(|line| line.test_bits_per_dim.is_some()) {
            let path = self.folder.join(PROGRESS).join(progress_name(line.step));
            if let Some(picture) = picture(&path, &format!("samples at step {}", line.step))? {
                let _ =
                    writeln!(progress, "<tr><th>step {}</th><td>{picture}</td></tr>", line.step);
            }
        }
        let _ = write!(
            html,
            "<h2>Samples over time</h2>\n<p>Temperature {}; a column is {}.</p>\n\
             <table id=\"progress\">\n{progress}</table>\n",
            self.progress_temperature,
            match self.num_classes {
                None => "drawn from the same latent",
                Some(_) => "a class, drawn from the same noise",
            }
        );
        if self.finished {
            let temperatures: Vec<_> = self.temperatures.iter().map(f64::to_string).collect();
            let temperatures = temperatures.join(", ");
            let note = match self.num_classes {
                None => format!("Temperatures {temperatures}."),
                Some(num_classes) => format!(
                    "A row is a class, from 0 to {}; a column is drawn from the same noise. \
                     Temperature {temperatures}.",
                    num_classes - 1
                ),
            };
            let notes = [
                ("Samples", "samples.png", note),
                (
                    "Reconstructions",
                    "reconstructions.png",
                    "Test images, and what comes back from their latents.".into(),
                ),
            ];
            for (heading, name, note) in notes {
                let picture = picture(&self.folder.join(name), heading)?.unwrap_or_default();
                let _ = write!(html, "<h2>{heading}</h2>\n<p>{note}</p>\n{picture}\n");
            }
        }
        let mut rows = Vec::new();
        flatten("", config, &mut rows);
        let _ = write!(html, "<h2>Configuration</h2>\n{}", table("configuration", &rows));
        html += "<h2>Versions</h2>\n";
        html += &table("versions", &self.versions());
        html += "</body>\n</html>\n";
        Ok(html)
    }

    fn summary(&self) -> Vec<(String, String)> {
        let Some(last) = self.metrics.last() else { return Vec::new() };
        let mut rows = vec![
            ("steps".into(), last.step.to_string()),
            ("passes over the training images".into(), format!("{:.1}", last.epoch)),
            ("minutes".into(), format!("{:.1}", last.seconds / 60.0)),
            ("seconds waited for batches".into(), format!("{:.3}", last.seconds_waited)),
            ("training bits/dim".into(), format!("{:.4}", last.train_bits_per_dim)),
        ];
        let measured = self.metrics.iter().rev().find_map(|line| {
            Some((line.test_bits_per_dim?, line.test_images?, line.inversion_error?))
        });
        if let Some((bits, images, error)) = measured {
            let of = if self.num_classes.is_some() {
                "test bits/dim given the class"
            } else {
                "test bits/dim"
            };
            rows.push((of.into(), format!("{bits:.4} over {images} images")));
            rows.push(("largest inversion error".into(), format!("{error:.1e}")));
        }
        let of_classes = self
            .metrics
            .iter()
            .rev()
            .find_map(|line| Some((line.test_accuracy?, line.test_marginal_bits_per_dim?)));
        if let Some((accuracy, marginal)) = of_classes {
            let share = format!("{:.2} % of the test images", 100.0 * accuracy);
            rows.push(("right by Bayes' rule".into(), share));
            rows.push(("test bits/dim without the class".into(), format!("{marginal:.4}")));
        }
        rows
    }

    fn versions(&self) -> Vec<(String, String)> {
        vec![
            ("burn-flows".into(), env!("CARGO_PKG_VERSION").into()),
            ("Burn".into(), burn_version().into()),
            ("device".into(), self.device.into()),
            (
                "machine".into(),
                format!(
                    "{} {}, {} threads",
                    std::env::consts::OS,
                    std::env::consts::ARCH,
                    std::thread::available_parallelism().map_or(1, usize::from)
                ),
            ),
        ]
    }
}

/// The version of Burn that this was built with.
fn burn_version() -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let version = lock.split_once("name = \"burn\"\nversion = \"").map(|(_, rest)| rest);
    version.and_then(|rest| rest.split('"').next()).unwrap_or("unknown")
}

fn table(id: &str, rows: &[(String, String)]) -> String {
    let mut html = format!("<table id=\"{id}\">\n");
    for (name, value) in rows {
        let _ = writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    html + "</table>\n"
}

/// The picture at `path` as an element with its data in it; `None` if there is none.
fn picture(path: &Path, description: &str) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(format!(
            "<img alt=\"{}\" src=\"data:image/png;base64,{}\">",
            escape(description),
            BASE64_STANDARD.encode(bytes)
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FlowError::Io {
            action: "read",
            path: path.into(),
            source,
            advice: "give --out a folder that can be read",
        }),
    }
}

/// The leaves of nested JSON, by their paths.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, rows);
            }
        }
        Value::String(text) => rows.push((path.into(), text.clone())),
        other => rows.push((path.into(), other.to_string())),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
