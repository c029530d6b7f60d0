//! What a cut brought: measured stalls and evidence.
//!
//! Crash story: plain values, no effects.

use serde::{Deserialize, Serialize};

use crate::{id::SourceId, plan::HoldClass, time::Millis};

/// How long writers could be held back by one hold: from before the first statement or signal that can
/// block one was sent, until the release was confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// The hold, such as `sqlite:/srv/app.db` or `processes:hydro.service`.
    pub hold: String,
    /// The sources whose writers it held back.
    pub sources: Vec<SourceId>,
    /// Its class.
    pub class: HoldClass,
    /// How long.
    pub ms: Millis,
}

/// All stalls of a cut. `total` runs from the first freeze to the last thaw, without stop and start hooks;
/// what those cost is `downtime`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// From the first lock to the last release.
    pub total: Millis,
    /// From the start of the stop hook until the start hook had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Millis>,
    /// One for each hold.
    pub per_hold: Vec<Stall>,
}
