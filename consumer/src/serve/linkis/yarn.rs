//! A task's resources in Linkis' format: its applications, and their shares of the queue.

use serde::Serialize;
use utoipa::ToSchema;

use crate::query::Resource;

/// Bytes per GiB.
const GIB: f64 = (1_u64 << 30) as f64;

/// Totals of the queue, for shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) cores: u32,
    pub(super) memory_gib: u32,
}

/// The resource part of an answer, under one of two keys, as in Linkis.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Held {
    /// Applications were reported, now or before the task ended.
    #[serde(rename_all = "camelCase")]
    Applications { yarn_metrics: YarnMetrics },
    /// No application was reported.
    #[serde(rename_all = "camelCase")]
    Nothing {
        #[schema(value_type = Option<Vec<YarnApplication>>, required = true)]
        yarn_resource: (),
    },
}

/// Resources of a task's applications.
#[derive(Serialize, ToSchema)]
pub(super) struct YarnMetrics {
    #[serde(rename = "yarnResource")]
    yarn_resource: Vec<YarnApplication>,
    /// A ratio, which may exceed 1.
    #[serde(rename = "corePercent")]
    core_percent: f64,
    #[serde(rename = "memoryPercent")]
    memory_percent: f64,
    #[serde(rename = "coreRGB")]
    core_rgb: &'static str,
    #[serde(rename = "memoryRGB")]
    memory_rgb: &'static str,
}

/// An application and its resources.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct YarnApplication {
    application_id: String,
    #[serde(flatten)]
    held: QueueResource,
}

/// Resources of an application. Memory is in bytes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct QueueResource {
    queue_memory: i64,
    queue_cores: i32,
    queue_instances: i32,
    job_status: String,
    queue: String,
}

impl From<&Resource> for QueueResource {
    fn from(held: &Resource) -> Self {
        Self {
            queue_memory: held.memory_bytes,
            queue_cores: held.cores,
            queue_instances: held.instances,
            job_status: held.status.clone(),
            queue: held.queue.clone(),
        }
    }
}

impl Held {
    pub(super) fn of(resource: &[Resource], limits: QueueLimits) -> Self {
        if resource.is_empty() {
            return Self::Nothing { yarn_resource: () };
        }
        // Floating-point, because the sum of integers may overflow.
        let cores: f64 = resource.iter().map(|held| f64::from(held.cores)).sum();
        let memory: f64 = resource.iter().map(|held| held.memory_bytes as f64).sum();
        let core_percent = cores / f64::from(limits.cores);
        let memory_percent = memory / (f64::from(limits.memory_gib) * GIB);
        let application = |held: &Resource| YarnApplication {
            application_id: held.application_id.clone(),
            held: held.into(),
        };
        Self::Applications {
            yarn_metrics: YarnMetrics {
                yarn_resource: resource.iter().map(application).collect(),
                core_percent,
                memory_percent,
                core_rgb: rgb(core_percent),
                memory_rgb: rgb(memory_percent),
            },
        }
    }
}

/// A colour's name, despite the field's name.
fn rgb(share: f64) -> &'static str {
    match share {
        ..=0.5 => "green",
        ..=0.7 => "yellow",
        _ => "red",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_the_colours_of_linkis() {
        let shares = [0.0, 0.5, 0.500_001, 0.7, 0.700_001, 2.0];
        let colours = ["green", "green", "yellow", "yellow", "red", "red"];
        assert_eq!(shares.map(rgb), colours);
    }
}
