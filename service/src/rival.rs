//! Detection of another process with this one's identity.
//!
//! Of two processes with one identity, Kafka fences the earlier. After a restart it fences the other, and so
//! on: an operator has to stop one of them. But Kafka reports the same error if it mistakes a repeated
//! request for a second process, for example after a broker froze. A restart cures that.
//!
//! The consumer group distinguishes the two cases. A fenced process leaves the group and commits nothing
//! more. Outside of a rebalance, Kafka removes a dead member when its session times out. So a member with
//! this identity that is still there after [`SESSIONS`] sessions is a live rival.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::groups::GroupMemberInfo;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::error::NeedsAttention;
use crate::health::Health;
use crate::kafka::{KafkaOptions, LoggingContext, wrong_settings};
use crate::subscription::session_timeout;

pub use crate::error::Fenced;

/// Number of sessions for which a member must be seen before it counts as a rival: its own, one more if its
/// coordinator moved, and one as a margin.
const SESSIONS: u32 = 3;
/// Gives up after this many sessions without a clear answer.
const SESSIONS_MAX: u32 = 9;
/// Interval between two requests for the group's members.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Timeout of a request.
const ASK: Duration = Duration::from_secs(5);
/// States of a group in which all members are alive.
const SETTLED: &[&str] = &["Stable", "Empty", "Dead"];
/// The characters of a UUID.
const UUID_CHARS: usize = 36;

/// Identity of a process in its group.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// Instance id of a static member.
    pub instance_id: Option<&'a str>,
    /// Whether `client.id`, as [`KafkaOptions`] set it, is unique in the group without an instance id.
    pub has_client_id: bool,
}

/// A member of a consumer group.
#[derive(Clone, Debug)]
struct Member {
    id: String,
    client_id: String,
    host: String,
}

impl Member {
    /// Kafka builds a member id from a name (the instance id, or else the `client.id`) and a UUID.
    fn has_name(&self, name: &str) -> bool {
        let rest = self.id.strip_prefix(name);
        let uuid = rest.and_then(|rest| rest.strip_prefix('-'));
        uuid.is_some_and(|uuid| uuid.len() == UUID_CHARS)
    }
}

impl From<&GroupMemberInfo> for Member {
    fn from(member: &GroupMemberInfo) -> Self {
        Self {
            id: member.id().to_owned(),
            client_id: member.client_id().to_owned(),
            host: member.client_host().trim_start_matches('/').to_owned(),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            client_id,
            host,
        } = self;
        write!(
            f,
            "client.id {} at {}, member {}",
            client_id.escape_debug(),
            host.escape_debug(),
            id.escape_debug()
        )
    }
}

/// If this error is [`Fenced`], looks for the rival of a program that has left its group.
///
/// # Errors
/// Needs an operator, and names the rival, if there is a live one; otherwise the error unchanged. Ok if the
/// program is stopped meanwhile.
pub async fn look_for(
    error: anyhow::Error,
    options: &KafkaOptions,
    identity: Identity<'_>,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if !error.is::<Fenced>() {
        return Err(error);
    }
    let group = identity.group;
    tracing::warn!(
        "{error:#}; checking whether another member of the group {group} has this identity"
    );
    health.waiting_for(format!("{error:#}"));
    let found = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        found = find(options, identity) => found,
    };
    match found {
        Ok(Some(rival)) => Err(NeedsAttention(format!(
            "{error:#}. In the group {group} another process with the same identity is running: {rival}. Stop one of the two, or \
             give each its own --instance-id"
        ))
        .into()),
        Ok(None) => Err(error),
        Err(why) => {
            tracing::warn!("cannot describe the group {group}: {why:#}");
            Err(error)
        }
    }
}

/// The rival, if it is alive.
async fn find(options: &KafkaOptions, identity: Identity<'_>) -> anyhow::Result<Option<Member>> {
    let session = session_timeout(options)?;
    let config = options.client_config(&[], &[])?;
    // A client.id set by -X may be that of other members, too.
    let has_client_id = identity.has_client_id && !options.chosen()?.contains_key("client.id");
    let client_id = config.get("client.id").filter(|_| has_client_id);
    let Some(name) = identity.instance_id.or(client_id) else {
        return Ok(None);
    };
    let client = config
        .create_with_context(LoggingContext)
        .map_err(wrong_settings)?;
    let client = Arc::new(client);
    let give_up = Instant::now() + session * SESSIONS_MAX;
    let (mut seen, mut unseen) = (None, None);
    loop {
        let now = Instant::now();
        match members(&client, identity.group).await {
            Ok(members) => match members.into_iter().find(|member| member.has_name(name)) {
                Some(rival) => {
                    unseen = None;
                    if now - *seen.get_or_insert(now) >= session * SESSIONS {
                        return Ok(Some(rival));
                    }
                }
                None => {
                    seen = None;
                    // The rival may have fenced this process before it joins the group.
                    if now - *unseen.get_or_insert(now) >= session {
                        return Ok(None);
                    }
                }
            },
            Err(error) => {
                tracing::debug!("members of the group {}: {error:#}", identity.group);
                (seen, unseen) = (None, None);
            }
        }
        if now > give_up {
            return Ok(None);
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn members(
    client: &Arc<BaseConsumer<LoggingContext>>,
    group: &str,
) -> anyhow::Result<Vec<Member>> {
    let (client, group) = (client.clone(), group.to_owned());
    let asked = spawn_blocking(move || {
        let groups = client.fetch_group_list(Some(&group), ASK)?;
        let mut members = Vec::new();
        for found in groups.groups().iter().filter(|found| found.name() == group) {
            // During a rebalance, Kafka keeps members whose sessions have timed out.
            if !SETTLED.contains(&found.state()) {
                bail!("its state is {}", found.state());
            }
            members.extend(found.members().iter().map(Member::from));
        }
        anyhow::Ok(members)
    });
    asked.await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> Member {
        Member {
            id: id.to_owned(),
            client_id: "any".to_owned(),
            host: "10.0.0.2".to_owned(),
        }
    }

    #[test]
    fn a_member_id_has_the_whole_name_before_its_uuid() {
        let uuid = "123e4567-e89b-12d3-a456-426614174000";
        let is_router_1 = |name: &str| member(&format!("{name}{uuid}")).has_name("router-1");
        assert!(is_router_1("router-1-"));
        for other in ["router-1", "router-10-", "router-1-1-", "a-router-1-", "1-"] {
            assert!(!is_router_1(other), "{other}");
        }
        assert!(!member("router-1").has_name("router-1"));
    }
}
