//! A run as one HTML file that needs nothing else: curves, pictures, configuration, versions.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use burn::store::BurnpackStore;
use serde_json::Value;

use super::{Metrics, Section, Shown, Unit, curves};
use crate::error::{FlowError, Result};
use crate::record::write_atomically;

/// What a report is of.
pub(super) struct Report<'a> {
    pub title: &'a str,
    /// The run's folder, where the pictures lie.
    pub folder: &'a Path,
    pub device: Option<&'a str>,
    /// `config.json`.
    pub config: &'a str,
}

const STYLE: &str = "\
body { font: 16px/1.5 sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em }
svg, img { max-width: 100%; height: auto } img { image-rendering: pixelated; display: block }
table { border-collapse: collapse } td, th { padding: .1em 1.5em .1em 0; text-align: left;
vertical-align: top; font-weight: normal } th { color: #666 } h2 { margin-top: 2em }";

impl Report<'_> {
    /// Writes `report.html` into the run's folder.
    pub fn write(&self, metrics: &[Metrics], sections: &[Section], unit: Unit) -> Result<()> {
        let html = self.html(metrics, sections, unit)?;
        write_atomically(self.folder.join("report.html"), html.as_bytes())
    }

    fn html(&self, metrics: &[Metrics], sections: &[Section], unit: Unit) -> Result<String> {
        let title = escape(self.title);
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        );
        html += &table("summary", &summary(metrics, unit));
        let curves = curves::svg(metrics);
        let _ = write!(html, "<h2>Curves</h2>\n<div id=\"curves\">{curves}</div>\n");
        for section in sections {
            html += &self.section(section)?;
        }
        let mut rows = Vec::new();
        flatten("", &serde_json::from_str(self.config).unwrap_or_default(), &mut rows);
        let _ = write!(html, "<h2>Configuration</h2>\n{}", table("configuration", &rows));
        html += "<h2>Versions</h2>\n";
        html += &table("versions", &self.versions());
        html += "</body>\n</html>\n";
        Ok(html)
    }

    fn section(&self, section: &Section) -> Result<String> {
        let heading = escape(&section.heading);
        let mut html = format!("<h2>{heading}</h2>\n<p>{}</p>\n", escape(&section.note));
        let mut series = String::new();
        for Shown { label, file } in &section.pictures {
            let description = label.as_ref().unwrap_or(&section.heading);
            let Some(picture) = picture(&self.folder.join(file), description)? else { continue };
            let _ = match label {
                None => writeln!(html, "{picture}"),
                Some(label) => {
                    let label = escape(label);
                    writeln!(series, "<tr><th>{label}</th><td>{picture}</td></tr>")
                }
            };
        }
        if !series.is_empty() {
            let _ = write!(html, "<table>\n{series}</table>\n");
        }
        Ok(html)
    }

    fn versions(&self) -> Vec<(String, String)> {
        vec![
            ("burn-flows".into(), env!("CARGO_PKG_VERSION").into()),
            ("Burn".into(), burn_version()),
            ("device".into(), self.device.unwrap_or("that of the model").into()),
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

/// The version of Burn that this was built with, which Burn tells by the records that it writes.
fn burn_version() -> String {
    let about = BurnpackStore::default_metadata().remove("version");
    about.unwrap_or_else(|| "unknown".into())
}

fn summary(metrics: &[Metrics], unit: Unit) -> Vec<(String, String)> {
    let Some(last) = metrics.last() else { return Vec::new() };
    let mut rows = vec![("steps".into(), last.step.to_string())];
    if let Some(epoch) = last.epoch {
        let data = unit.samples();
        rows.push((format!("passes over the training {data}"), format!("{epoch:.1}")));
    }
    rows.push(("minutes".into(), format!("{:.1}", last.seconds / 60.0)));
    rows.push(("seconds waited for batches".into(), format!("{:.3}", last.seconds_waited)));
    if let Some(bits) = last.train_bits_per_dim {
        rows.push(("training bits/dim".into(), format!("{bits:.4}")));
    }
    if let Some(loss) = last.train_loss {
        rows.push(("-ln p in training, nats".into(), format!("{loss:.4}")));
    }
    let Some(measured) = metrics.iter().rev().find(|line| line.is_measured()) else { return rows };
    let accuracy = measured.test_accuracy.zip(measured.test_marginal_bits_per_dim);
    if let Some((bits, images)) = measured.test_bits_per_dim.zip(measured.test_images) {
        let of = match accuracy {
            Some(_) => "test bits/dim given the class",
            None => "test bits/dim",
        };
        rows.push((of.into(), format!("{bits:.4} over {images} images")));
    }
    if let Some((loss, samples)) = measured.held_out_loss.zip(measured.held_out_samples) {
        let best = metrics.iter().filter_map(|line| line.held_out_loss).fold(loss, f64::min);
        rows.push(("-ln p held out, nats".into(), format!("{loss:.4} over {samples} samples")));
        rows.push(("the lowest of them".into(), format!("{best:.4}")));
    }
    if let Some(error) = measured.inversion_error {
        rows.push(("largest inversion error".into(), format!("{error:.1e}")));
    }
    if let Some((accuracy, marginal)) = accuracy {
        let share = format!("{:.2} % of the test images", 100.0 * accuracy);
        rows.push(("right by Bayes' rule".into(), share));
        rows.push(("test bits/dim without the class".into(), format!("{marginal:.4}")));
    }
    rows.extend(measured.more.iter().map(|(name, value)| (name.clone(), value.to_string())));
    rows
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
            advice: "give Run::new a folder that can be read",
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
