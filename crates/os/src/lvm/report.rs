//! What LVM tells of its volumes: `lvs` and `vgs` with `--reportformat json`, lvmreport(7).
//!
//! Crash story: reads only.

use std::path::Path;

use model::size::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

use super::{LogicalVolume, READING};
use crate::tools::{Tool, ToolError};

/// A thin pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its size.
    pub size: Bytes,
    /// How much of its data is used, 0 to 1.
    pub data: f64,
    /// How much of its metadata is used, 0 to 1.
    pub metadata: f64,
}

impl Pool {
    /// What is free of its data.
    #[must_use]
    pub fn free(&self) -> Bytes {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate, and not negative"
        )]
        Bytes((self.size.0 as f64 * (1.0 - self.data.clamp(0.0, 1.0))) as u64)
    }
}

/// All values are strings in LVM's JSON; what does not apply is empty.
#[derive(Debug, Deserialize)]
struct Row {
    vg_name: String,
    lv_name: String,
    lv_size: String,
    segtype: String,
    pool_lv: String,
    origin: String,
    vg_free: String,
    vg_extent_size: String,
    lv_tags: String,
    data_percent: String,
    metadata_percent: String,
    lv_uuid: String,
    thin_id: String,
}

const FIELDS: &str = "vg_name,lv_name,lv_size,segtype,pool_lv,origin,vg_free,vg_extent_size,lv_tags,\
                      data_percent,metadata_percent,lv_uuid,thin_id";

#[derive(Debug, Deserialize)]
struct Group {
    vg_free: String,
}

#[derive(Debug, Deserialize)]
struct Whole {
    report: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// The rows of a report; `kind` is `lv` or `vg`.
fn rows<T: DeserializeOwned>(text: &str, kind: &str) -> Option<Vec<T>> {
    let whole: Whole = serde_json::from_str(text).ok()?;
    let mut found = Vec::new();
    for mut part in whole.report {
        let rows = part.remove(kind)?;
        found.extend(serde_json::from_value::<Vec<T>>(rows).ok()?);
    }
    Some(found)
}

fn lvs(what: String) -> Tool {
    let fields = ["--reportformat", "json", "--units", "b", "--nosuffix", "-a", "-o", FIELDS];
    Tool::new("lvs", what, READING).args(fields)
}

fn volumes(tool: &Tool) -> Result<Vec<Row>, ToolError> {
    rows(&tool.run()?, "lv").ok_or_else(|| tool.not_understood())
}

/// The volume behind a device node.
pub(super) fn look_at(device: &Path) -> Result<LogicalVolume, ToolError> {
    let tool = lvs(format!("asking for the logical volume {}", device.display())).args([device]);
    let row = volumes(&tool)?.into_iter().next();
    row.and_then(|row| volume(&row)).ok_or_else(|| tool.not_understood())
}

/// A volume by name, if there is one; waits for a change of its group that is under way.
pub(super) fn look_for(group: &str, name: &str) -> Result<Option<LogicalVolume>, ToolError> {
    let select = format!("vg_name=\"{group}\" && lv_name=\"{name}\"");
    let tool = lvs(format!("asking for the logical volume {group}/{name}")).args(["--select", &select]);
    match volumes(&tool)?.first() {
        Some(row) => volume(row).map(Some).ok_or_else(|| tool.not_understood()),
        None => Ok(None),
    }
}

/// How full a thin pool is.
///
/// # Errors
/// If LVM does not tell.
pub fn look_at_pool(group: &str, pool: &str) -> Result<Pool, ToolError> {
    let tool = lvs(format!("asking for the thin pool {group}/{pool}")).args([format!("{group}/{pool}")]);
    let row = volumes(&tool)?.into_iter().next();
    let known = row.and_then(|row| {
        let percent = |text: &str| text.parse::<f64>().ok().map(|percent| percent / 100.0);
        Some(Pool {
            size: number(&row.lv_size)?,
            data: percent(&row.data_percent)?,
            metadata: percent(&row.metadata_percent)?,
        })
    });
    known.ok_or_else(|| tool.not_understood())
}

/// What is free in a volume group.
///
/// # Errors
/// If LVM does not tell.
pub fn free_in_group(group: &str) -> Result<Bytes, ToolError> {
    let tool = Tool::new("vgs", format!("asking for the volume group {group}"), READING);
    let fields = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_free", group];
    let tool = tool.args(fields);
    let found = rows::<Group>(&tool.run()?, "vg").and_then(|rows| number(&rows.first()?.vg_free));
    found.ok_or_else(|| tool.not_understood())
}

fn volume(row: &Row) -> Option<LogicalVolume> {
    let some = |text: &str| (!text.is_empty()).then(|| text.trim_matches(['[', ']']).to_owned());
    Some(LogicalVolume {
        group: row.vg_name.clone(),
        name: some(&row.lv_name)?,
        size: number(&row.lv_size)?,
        segment: row.segtype.clone(),
        pool: some(&row.pool_lv),
        origin: some(&row.origin),
        group_free: number(&row.vg_free)?,
        extent: number(&row.vg_extent_size)?,
        tags: row.lv_tags.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
        uuid: row.lv_uuid.clone(),
        thin_id: row.thin_id.trim().parse().ok(),
    })
}

fn number(text: &str) -> Option<Bytes> {
    text.trim().parse().ok().map(Bytes)
}

#[cfg(test)]
mod tests {
    use model::size::Bytes;

    use super::{Group, Pool, Row, rows, volume};

    /// As LVM 2.03.16 writes it.
    const LVS: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg0", "lv_name":"data", "lv_size":"4294967296", "segtype":"thin", "pool_lv":"pool", "origin":"", "vg_free":"1069547520", "vg_extent_size":"4194304", "lv_tags":"a,b", "data_percent":"12.50", "metadata_percent":"", "lv_uuid":"0A19Wp-BBEO-uzch-0t3W-0Nut-8MkP-039Irq", "thin_id":"1"},
                  {"vg_name":"vg0", "lv_name":"[snap]", "lv_size":"1073741824", "segtype":"linear", "pool_lv":"", "origin":"data", "vg_free":"1069547520", "vg_extent_size":"4194304", "lv_tags":"", "data_percent":"", "metadata_percent":"", "lv_uuid":"6PvIfk-SaVf-bsQe-Hjkd-ij4S-FcV7-i9QIoA", "thin_id":""}
              ]
          }
      ]
  }
"#;

    #[test]
    fn reports_are_understood() {
        let found: Vec<_> = rows::<Row>(LVS, "lv").unwrap().iter().map(|row| volume(row).unwrap()).collect();
        assert_eq!(found[0].full_name(), "vg0/data");
        assert_eq!(found[0].thin_pool(), Some("pool"));
        assert_eq!((found[0].size, found[0].extent), (Bytes(4 << 30), Bytes(4 << 20)));
        assert_eq!(found[0].tags, ["a", "b"]);
        assert_eq!((found[1].name.as_str(), found[1].origin.as_deref()), ("snap", Some("data")));
        assert_eq!((found[0].thin_id, found[1].thin_id), (Some(1), None));
        assert_eq!(found[0].uuid, "0A19Wp-BBEO-uzch-0t3W-0Nut-8MkP-039Irq");
        assert!(found[1].tags.is_empty() && found[1].thin_pool().is_none());
        assert!(rows::<Row>(r#"{"report":[{"lv":[]}]}"#, "lv").unwrap().is_empty());
        assert!(rows::<Group>("no such thing", "vg").is_none());
    }

    #[test]
    fn what_is_free_of_a_pool() {
        assert_eq!(Pool { size: Bytes(1000), data: 0.75, metadata: 0.1 }.free(), Bytes(250));
    }
}
