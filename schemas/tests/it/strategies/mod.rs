//! Test events: a complete sample, and arbitrary ones of the schema.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use schemas::{
    Adjustment, EngineInstance, JobProgressInfo, MetricValue, ResourceWithStatus, SourcePosition,
    TaskProgressInfo, TaskResourceInfo, TaskRunningInfo, TaskRunningInfoEvent, TaskStatus,
};

/// One event with all fields.
pub(crate) fn sample_event() -> TaskRunningInfoEvent {
    let metrics = [
        ("nothing", MetricValue::Null),
        ("flag", MetricValue::Boolean(true)),
        ("count", MetricValue::Long(-1)),
        ("seconds", MetricValue::Double(12.5)),
        ("whole", MetricValue::Double(3.0)),
        ("text", MetricValue::String("ü".into())),
    ];
    TaskRunningInfoEvent {
        source: SourcePosition {
            topic: "task-running-info".into(),
            partition: 3,
            offset: 1 << 40,
            timestamp: 1_764_079_500_123,
            topic_id: Some("ASNFZ4mrze8AESIzRFVmdw".into()),
        },
        routed_at: 1_764_079_500_200_001,
        adjustments: vec![Adjustment::NegativeCount],
        not_finite: BTreeMap::new(),
        info: TaskRunningInfo {
            exec_id: "exec-1".into(),
            job_id: "job-1".into(),
            engine: EngineInstance {
                instance: "node-1:4040".into(),
                engine_type: "spark".into(),
                user: "ada".into(),
                ticket_id: "t-1".into(),
                running_tasks: 2,
            },
            status: TaskStatus::Running,
            reported_at: 1_764_079_500_123_456,
            sequence: 7,
            progress: Some(TaskProgressInfo {
                progress: 0.5,
                progress_info: vec![JobProgressInfo {
                    id: "0".into(),
                    total_tasks: 10,
                    running_tasks: 2,
                    failed_tasks: 1,
                    succeed_tasks: 5,
                }],
            }),
            resource: Some(TaskResourceInfo {
                applications: [(
                    "app-1".to_owned(),
                    ResourceWithStatus {
                        queue_memory: 8 << 30,
                        queue_cores: 4,
                        queue_instances: 2,
                        job_status: "RUNNING".into(),
                        queue: "default".into(),
                    },
                )]
                .into(),
            }),
            metrics: Some(metrics.map(|(name, value)| (name.to_owned(), value)).into()),
        },
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", any::<String>()]
}

/// Any double except NaN, so that values can be compared.
fn double() -> impl Strategy<Value = f64> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

fn metric() -> impl Strategy<Value = MetricValue> {
    prop_oneof![
        Just(MetricValue::Null),
        any::<bool>().prop_map(MetricValue::Boolean),
        any::<i64>().prop_map(MetricValue::Long),
        double().prop_map(MetricValue::Double),
        text().prop_map(MetricValue::String),
    ]
}

fn status() -> impl Strategy<Value = TaskStatus> {
    use TaskStatus as S;
    prop::sample::select(vec![
        S::Unknown,
        S::Inited,
        S::WaitForRetry,
        S::Scheduled,
        S::Running,
        S::Succeed,
        S::Failed,
        S::Cancelled,
        S::Timeout,
    ])
}

fn adjustment() -> impl Strategy<Value = Adjustment> {
    use Adjustment as A;
    prop::sample::select(vec![
        A::ProgressNotANumber,
        A::ProgressBelowZero,
        A::ProgressAboveOne,
        A::NegativeCount,
        A::NulInText,
        A::MetricNotFinite,
    ])
}

prop_compose! {
    fn job()(id in text(), counts in any::<[i32; 4]>()) -> JobProgressInfo {
        let [total_tasks, running_tasks, failed_tasks, succeed_tasks] = counts;
        JobProgressInfo { id, total_tasks, running_tasks, failed_tasks, succeed_tasks }
    }
}

prop_compose! {
    fn held()(
        queue_memory in any::<i64>(), queue_cores in any::<i32>(), queue_instances in any::<i32>(),
        job_status in text(), queue in text(),
    ) -> ResourceWithStatus {
        ResourceWithStatus { queue_memory, queue_cores, queue_instances, job_status, queue }
    }
}

prop_compose! {
    fn engine()(
        instance in text(), engine_type in text(), user in text(), ticket_id in text(), running_tasks in any::<i32>(),
    ) -> EngineInstance {
        EngineInstance { instance, engine_type, user, ticket_id, running_tasks }
    }
}

prop_compose! {
    /// Any info of the schema, valid or not.
    pub(crate) fn info()(
        exec_id in text(), job_id in text(), engine in engine(), status in status(),
        reported_at in any::<i64>(), sequence in any::<i64>(),
        progress in option::of((double(), vec(job(), 0..4))),
        resource in option::of(btree_map(text(), held(), 0..3)),
        metrics in option::of(btree_map(text(), metric(), 0..6)),
    ) -> TaskRunningInfo {
        TaskRunningInfo {
            exec_id, job_id, engine, status, reported_at, sequence,
            progress: progress.map(|(progress, progress_info)| TaskProgressInfo { progress, progress_info }),
            resource: resource.map(|applications| TaskResourceInfo { applications }),
            metrics,
        }
    }
}

prop_compose! {
    /// Any event of the schema.
    pub(crate) fn event()(
        topic in text(), position in any::<(i32, i64, i64)>(), topic_id in option::of(text()), routed_at in any::<i64>(),
        adjustments in vec(adjustment(), 0..3), info in info(),
        not_finite in btree_map("[a-z.é]{0,12}", "NaN|-?Infinity", 0..3),
    ) -> TaskRunningInfoEvent {
        let (partition, offset, timestamp) = position;
        TaskRunningInfoEvent { source: SourcePosition { topic, partition, offset, timestamp, topic_id }, routed_at, adjustments, not_finite, info }
    }
}
