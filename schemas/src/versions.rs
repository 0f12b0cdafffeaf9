//! The released versions of the two records.

/// A released version of a record.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// CRC-64-AVRO of the schema's parsing canonical form, as Java's org.apache.avro and Python's
    /// fastavro compute it.
    pub fingerprint: u64,
    /// The schema, as `.avsc` text.
    pub avsc: &'static str,
}

/// Every released version of `TaskRunningInfo`, oldest first.
pub const INFO_VERSIONS: &[Version] = &[Version {
    fingerprint: 0x944a_4f94_29e9_c6b6,
    avsc: include_str!("../avro/v1/TaskRunningInfo.avsc"),
}];
/// Every released version of `TaskRunningInfoEvent`, oldest first.
pub const EVENT_VERSIONS: &[Version] = &[
    Version {
        fingerprint: 0x34e3_436a_c13c_e5f9,
        avsc: include_str!("../avro/v1/TaskRunningInfoEvent.avsc"),
    },
    Version {
        fingerprint: 0xc987_eca3_bbcf_21f3,
        avsc: include_str!("../avro/v2/TaskRunningInfoEvent.avsc"),
    },
    Version {
        fingerprint: 0xcde6_93d1_c078_0b7e,
        avsc: include_str!("../avro/v3/TaskRunningInfoEvent.avsc"),
    },
];

/// The version of `TaskRunningInfo` that this program writes.
pub const CURRENT_INFO: &Version = &INFO_VERSIONS[INFO_VERSIONS.len() - 1];
/// The version of `TaskRunningInfoEvent` that this program writes.
pub const CURRENT_EVENT: &Version = &EVENT_VERSIONS[EVENT_VERSIONS.len() - 1];
