//! A good report.

use schemas::{EngineInstance, TaskProgressInfo, TaskRunningInfo, TaskStatus};

pub(crate) fn info(exec_id: &str, sequence: i64) -> TaskRunningInfo {
    TaskRunningInfo {
        exec_id: exec_id.into(),
        job_id: "job".into(),
        engine: EngineInstance {
            instance: "node:1".into(),
            engine_type: "test".into(),
            user: String::new(),
            ticket_id: String::new(),
            running_tasks: 1,
        },
        status: TaskStatus::Running,
        reported_at: 1_764_079_500_123_456,
        sequence,
        progress: Some(TaskProgressInfo {
            progress: 0.5,
            progress_info: vec![],
        }),
        resource: None,
        metrics: None,
    }
}
