//! The agent's flags.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::{BlockedByPdb, EventResponse, Events};
use spotpool_runtime::args::CommonArgs;
use url::Url;

/// Watches Azure's notices for the VM it runs on, and when one comes cordons the node and drains it by the
/// deadline.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "spotpool-node-agent", version)]
pub struct Args {
    /// Name of the Node that the agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Azure's Instance Metadata Service, over plain HTTP.
    #[arg(long, env = "IMDS_ENDPOINT", default_value = "http://169.254.169.254", value_parser = plain_http)]
    pub imds_endpoint: Url,

    /// How often it is asked, 100ms to 60s.
    #[arg(long, env = "POLL_INTERVAL", default_value = "1s", value_parser = poll_interval)]
    pub poll_interval: Duration,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:9435")]
    pub listen: SocketAddr,

    /// Where pods of the node may read the notice, /v1/notice.
    #[arg(long, env = "NOTICE_LISTEN", default_value = "0.0.0.0:9437")]
    pub notice_listen: SocketAddr,

    /// On nodes of no SpotPool: how long after the notice a pod that a disruption budget holds is deleted, at
    /// most 10m.
    #[arg(long, env = "ESCALATE_AFTER", default_value = "8s", value_parser = escalate_after)]
    pub escalate_after: Duration,

    /// On nodes of no SpotPool: time kept free before the deadline, at most 20s.
    #[arg(long, env = "DRAIN_RESERVE", default_value = "2s", value_parser = reserve)]
    pub drain_reserve: Duration,

    /// On nodes of no SpotPool: what becomes of pods that a disruption budget holds, DeleteAtDeadline or
    /// Leave.
    #[arg(long, env = "BLOCKED_BY_PDB", default_value = "DeleteAtDeadline", value_parser = blocked_by_pdb)]
    pub blocked_by_pdb: BlockedByPdb,

    /// On nodes of no SpotPool: what the node does when Azure takes the VM back: Ignore, Cordon or Drain.
    #[arg(long, env = "ON_PREEMPT", default_value = "Drain", value_parser = response)]
    pub on_preempt: EventResponse,

    /// The same when Azure pauses the VM for some seconds.
    #[arg(long, env = "ON_FREEZE", default_value = "Ignore", value_parser = response)]
    pub on_freeze: EventResponse,

    /// The same when Azure restarts the VM.
    #[arg(long, env = "ON_REBOOT", default_value = "Drain", value_parser = response)]
    pub on_reboot: EventResponse,

    /// The same when Azure moves the VM to another host.
    #[arg(long, env = "ON_REDEPLOY", default_value = "Drain", value_parser = response)]
    pub on_redeploy: EventResponse,

    /// The same when Azure deletes the VM.
    #[arg(long, env = "ON_TERMINATE", default_value = "Drain", value_parser = response)]
    pub on_terminate: EventResponse,

    /// The same when Azure hints that it may take the spot VM back soon.
    #[arg(long, env = "ON_REBALANCE", default_value = "Ignore", value_parser = response)]
    pub on_rebalance: EventResponse,

    /// On nodes of no SpotPool: how long before a freeze, reboot, redeploy or terminate the node begins to
    /// respond, at most 24h.
    #[arg(long, env = "EVENT_LEAD_TIME", default_value = "10m", value_parser = lead_time)]
    pub event_lead_time: Duration,

    /// On nodes of no SpotPool: tell Azure to go ahead with such an event once every node that it names is
    /// drained.
    #[arg(long, env = "ACKNOWLEDGE_EVENTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub acknowledge_events: bool,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Args {
    /// How a node is drained that belongs to no SpotPool.
    pub fn drain_policy(&self) -> DrainPolicy {
        DrainPolicy {
            blocked_by_pdb: self.blocked_by_pdb,
            escalate_after: self.escalate_after.into(),
            reserve: self.drain_reserve.into(),
        }
    }
}

impl Args {
    /// What a node does about Azure's events that belongs to no SpotPool.
    pub fn events(&self) -> Events {
        Events {
            preempt: self.on_preempt,
            freeze: self.on_freeze,
            reboot: self.on_reboot,
            redeploy: self.on_redeploy,
            terminate: self.on_terminate,
            rebalance: self.on_rebalance,
            lead_time: self.event_lead_time.into(),
            acknowledge: self.acknowledge_events,
        }
    }
}

fn plain_http(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    if url.scheme() != "http" || url.host().is_none() {
        return Err("must be http://HOST[:PORT][/PREFIX]: the metadata service speaks plain HTTP".into());
    }
    Ok(url)
}

fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = spotpool_crds::Duration::from_str(text).map_err(|error| error.to_string())?.into();
    if duration < least || duration > most {
        return Err(format!("must be {least:?} to {most:?}"));
    }
    Ok(duration)
}

fn poll_interval(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(100), Duration::from_mins(1))
}

fn escalate_after(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, Duration::from_mins(10))
}

fn reserve(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, Duration::from_secs(20))
}

fn lead_time(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, Duration::from_hours(24))
}

fn response(text: &str) -> Result<EventResponse, String> {
    text.parse().map_err(|_| "want Ignore, Cordon or Drain".into())
}

fn blocked_by_pdb(text: &str) -> Result<BlockedByPdb, String> {
    match text {
        "DeleteAtDeadline" => Ok(BlockedByPdb::DeleteAtDeadline),
        "Leave" => Ok(BlockedByPdb::Leave),
        _ => Err("want DeleteAtDeadline or Leave".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn defaults_are_those_documented() {
        let args = Args::try_parse_from(["agent", "--node-name", "n"]).unwrap();
        assert_eq!(args.imds_endpoint.as_str(), "http://169.254.169.254/");
        assert_eq!(args.poll_interval, Duration::from_secs(1));
        assert_eq!(args.listen.port(), 9435);
        assert_eq!(args.notice_listen.port(), 9437);
        assert_eq!(args.drain_policy().escalate_after, Duration::from_secs(8).into());
        assert_eq!(args.drain_policy().reserve, Duration::from_secs(2).into());
        assert_eq!(args.events(), Events::default(), "as in a SpotPool that says nothing");
    }

    #[test]
    fn nonsense_is_refused() {
        for (flag, value) in [
            ("--poll-interval", "10ms"),
            ("--poll-interval", "2m"),
            ("--poll-interval", "-1s"),
            ("--poll-interval", "soon"),
            ("--drain-reserve", "21s"),
            ("--blocked-by-pdb", "Maybe"),
            ("--on-preempt", "drain"),
            ("--on-freeze", ""),
            ("--on-reboot", "Maybe"),
            ("--on-redeploy", "Drain,Cordon"),
            ("--on-terminate", "1"),
            ("--on-rebalance", "Yes"),
            ("--event-lead-time", "25h"),
            ("--acknowledge-events", "perhaps"),
            ("--imds-endpoint", "https://x"),
            ("--imds-endpoint", "169.254.169.254"),
        ] {
            let line = ["agent".to_owned(), "--node-name=n".to_owned(), format!("{flag}={value}")];
            assert!(Args::try_parse_from(line).is_err(), "{flag}={value}");
        }
    }
}
