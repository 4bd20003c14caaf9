//! Hooks: a pod may ask to hear of the notice by a POST, and to be evicted only after it has answered. It is asked
//! at its own address and nowhere else, without redirects or proxies, and a hook that fails only lets its pod go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use serde::Serialize;
use spotpool_crds::voluntary_drain::DrainRequest;
use spotpool_crds::{EvictionNotice, names};
use spotpool_drain::Pod;
use url::{Host, Url};

use crate::imds::chain;

/// How long an answer is waited for where the pod does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);
const LONGEST_PATH: usize = 1024;
/// Of an answer that is no success, this much is read, for the log.
const LARGEST_ANSWER: usize = 1024;
/// Azure's platform: DNS, health probes, the VM agent's channel. No pod has this address.
const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Which addresses are asked. A pod's address is what its kubelet says; should somebody else have written it, the
/// agent must not become their way to what only the host may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those that a pod may have: no loopback, nothing link-local (the metadata service), no multicast, not Azure's
    /// platform.
    Pods,
    /// The loopback too: in tests, where one machine plays all.
    PodsAndLoopback,
}

impl Reach {
    /// Where even the metadata service is on the loopback, all of a test is.
    pub fn beside(imds: &Url) -> Self {
        let is_test = match imds.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(_)) | None => false,
        };
        if is_test { Self::PodsAndLoopback } else { Self::Pods }
    }

    fn includes(self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let is_special = match ip {
            IpAddr::V4(ip) => {
                ip.octets()[0] == 0
                    || ip.is_link_local()
                    || ip.is_multicast()
                    || ip.is_broadcast()
                    || ip == WIRE_SERVER
            }
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast(),
        };
        !is_special && (self == Self::PodsAndLoopback || !ip.is_loopback())
    }
}

/// Where a pod wants to be asked, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    uri: Uri,
    /// How long the answer is waited for.
    pub timeout: Duration,
}

/// Why a hook cannot be asked, whatever the pod does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHook {
    /// No port and path.
    #[error("annotation {} must be a port and a path, such as :8080/checkpoint", names::HOOK_ANNOTATION)]
    Target,
    /// No duration, or one out of range.
    #[error("annotation {} must be a duration of 1s to 10m, such as 10s", names::HOOK_TIMEOUT_ANNOTATION)]
    Timeout,
    /// Its address is its node's, where others listen too.
    #[error("hooks of pods on the host's network are not asked")]
    HostNetwork,
    /// Not an address of a pod.
    #[error("hooks at address {0} are not asked")]
    Address(IpAddr),
}

impl Hook {
    /// The hook of a pod; `None` if it wants none, or has no address yet.
    pub fn of(pod: &Pod, reach: Reach) -> Result<Option<Self>, BadHook> {
        let Some(target) = &pod.hook else { return Ok(None) };
        let (port, path) = parse(target).ok_or(BadHook::Target)?;
        let timeout = pod.hook_timeout.as_deref().map_or(Some(DEFAULT_TIMEOUT), timeout);
        let timeout = timeout.ok_or(BadHook::Timeout)?;
        if pod.host_network {
            return Err(BadHook::HostNetwork);
        }
        let Some(ip) = pod.ip else { return Ok(None) };
        if !reach.includes(ip) {
            return Err(BadHook::Address(ip));
        }
        let uri = format!("http://{}{path}", SocketAddr::new(ip, port));
        Ok(Some(Self { uri: uri.parse().map_err(|_| BadHook::Target)?, timeout }))
    }
}

/// `:8080/checkpoint`: a port and a path of visible characters, which may have a query.
fn parse(target: &str) -> Option<(u16, &str)> {
    let rest = target.strip_prefix(':')?;
    let (port, path) = rest.split_at(rest.find('/')?);
    let is_visible = |byte: u8| (b'!'..=b'~').contains(&byte) && byte != b'#';
    if !port.bytes().all(|byte| byte.is_ascii_digit())
        || path.len() > LONGEST_PATH
        || !path.bytes().all(is_visible)
    {
        return None;
    }
    Some((port.parse().ok().filter(|port| *port != 0)?, path))
}

fn timeout(text: &str) -> Option<Duration> {
    let timeout: spotpool_crds::Duration = text.parse().ok()?;
    Some(Duration::from(timeout)).filter(|timeout| TIMEOUTS.contains(timeout))
}

/// What a hook is told.
#[derive(Serialize)]
pub struct Told<'a> {
    /// Of the event or the drain request. A hook may be told twice, after the agent has started anew: the id and the
    /// pod are the same then.
    pub id: &'a str,
    /// Azure's `EventType`, or `VoluntaryDrain`.
    pub r#type: &'a str,
    /// The pod that is meant.
    pub pod: ToldPod<'a>,
    /// As the relay tells it; `null` in a voluntary drain.
    pub notice: Option<&'a EvictionNotice>,
    /// What the operator has asked for, in a voluntary drain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<&'a DrainRequest>,
}

/// The pod that a hook belongs to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// By when it must be gone.
    pub deadline: Timestamp,
    /// By when an answer still counts.
    pub answer_by: Timestamp,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// 2xx.
    Answered,
    /// Another status, a redirect among them, and the beginning of what it said.
    Status(u16, String),
    /// No connection, or it broke.
    Unreachable(String),
    /// No answer within the hook's own time.
    Silent(Duration),
    /// No answer before the pod had to be asked to go.
    TooLate,
    /// The pod has ended meanwhile.
    Gone,
    /// It could not be asked.
    Malformed(BadHook),
}

impl Outcome {
    /// As a metric label and log field.
    pub fn label(&self) -> &'static str {
        self.into()
    }

    /// What went wrong, in words; `None` if nothing did.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Answered | Self::Gone => None,
            Self::Status(code, said) if said.is_empty() => Some(format!("it answered {code}")),
            Self::Status(code, said) => Some(format!("it answered {code}: {said}")),
            Self::Unreachable(why) => Some(why.clone()),
            Self::Silent(timeout) => Some(format!("no answer in {timeout:?}")),
            Self::TooLate => Some("no answer before the pod had to be asked to go".to_owned()),
            Self::Malformed(why) => Some(why.to_string()),
        }
    }
}

/// Asks hooks. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Whom it asks.
    pub reach: Reach,
}

impl Caller {
    /// A caller that knows no proxy, keeps no connection, and follows no redirect.
    pub fn new(reach: Reach) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { client, reach }
    }

    /// Asks one hook, once, for as long as it takes: the caller keeps the time. With a `traceparent`, the pod can go on
    /// with the trace.
    pub async fn post(&self, hook: &Hook, body: Bytes, traceparent: Option<String>) -> Outcome {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(hook.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, names::AGENT_FIELD_MANAGER);
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        let response = match request.body(Full::new(body)) {
            Ok(request) => self.client.request(request).await,
            Err(error) => return Outcome::Unreachable(error.to_string()),
        };
        match response {
            Ok(response) if response.status().is_success() => Outcome::Answered,
            Ok(response) => {
                let code = response.status().as_u16();
                let said = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
                let said = said.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let said = String::from_utf8_lossy(&said).escape_debug().take(200).collect();
                Outcome::Status(code, said)
            }
            Err(error) => Outcome::Unreachable(chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn pod(hook: &str, timeout: Option<&str>, ip: &str) -> Pod {
        Pod {
            hook: Some(hook.to_owned()),
            hook_timeout: timeout.map(str::to_owned),
            ip: ip.parse().ok(),
            ..Pod::default()
        }
    }

    #[test]
    fn a_hook_is_a_port_and_a_path_at_the_pods_own_address() {
        for (hook, uri) in [
            (":8080/checkpoint", "http://10.1.2.3:8080/checkpoint"),
            (":1/", "http://10.1.2.3:1/"),
            (":65535/a/b%20c?d=e&f", "http://10.1.2.3:65535/a/b%20c?d=e&f"),
            (":80//evil.example/x", "http://10.1.2.3:80//evil.example/x"),
            (":80/@evil.example", "http://10.1.2.3:80/@evil.example"),
        ] {
            let hook = Hook::of(&pod(hook, None, "10.1.2.3"), Reach::Pods).unwrap().unwrap();
            assert_eq!((hook.uri.to_string().as_str(), hook.timeout), (uri, DEFAULT_TIMEOUT));
            assert_eq!(hook.uri.host(), Some("10.1.2.3"));
        }
        let v6 = Hook::of(&pod(":8080/x", None, "fd00::7"), Reach::Pods).unwrap().unwrap();
        assert_eq!(v6.uri.to_string(), "http://[fd00::7]:8080/x");
    }

    #[test]
    fn anything_else_is_no_hook() {
        for hook in [
            "",
            "true",
            "8080/checkpoint",
            ":/checkpoint",
            ":8080",
            ":0/x",
            ":65536/x",
            ":+80/x",
            ": 80/x",
            ":-1/x",
            ":80x/y",
            ":80@169.254.169.254/x",
            ":80:90/x",
            ":8080/a b",
            ":8080/a\r\nHost: x",
            ":8080/a#b",
            ":8080/ä",
            "http://10.1.2.3:8080/x",
            "10.1.2.3:8080/x",
            "//10.1.2.3:8080/x",
        ] {
            let read = Hook::of(&pod(hook, None, "10.1.2.3"), Reach::Pods);
            assert_eq!(read, Err(BadHook::Target), "{hook:?}");
            // Said at once, not only once it has an address.
            assert_eq!(Hook::of(&pod(hook, None, ""), Reach::Pods), Err(BadHook::Target), "{hook:?}");
        }
        let long = format!(":80/{}", "x".repeat(LONGEST_PATH));
        assert_eq!(Hook::of(&pod(&long, None, "10.1.2.3"), Reach::Pods), Err(BadHook::Target));
        assert_eq!(Hook::of(&Pod::default(), Reach::Pods), Ok(None));
        assert_eq!(Hook::of(&pod(":80/x", None, ""), Reach::Pods), Ok(None));
    }

    #[test]
    fn timeouts_have_limits() {
        for (text, seconds) in [("1s", 1), ("10s", 10), ("1m30s", 90), ("10m", 600), ("1000ms", 1)] {
            let hook = Hook::of(&pod(":80/x", Some(text), "10.1.2.3"), Reach::Pods).unwrap().unwrap();
            assert_eq!(hook.timeout.as_secs(), seconds, "{text}");
        }
        for text in ["", "0s", "999ms", "10m1s", "1h", "-5s", "10", "soon"] {
            let read = Hook::of(&pod(":80/x", Some(text), "10.1.2.3"), Reach::Pods);
            assert_eq!(read, Err(BadHook::Timeout), "{text:?}");
        }
    }

    #[test]
    fn what_only_the_host_may_reach_is_not_asked() {
        for (ip, asked) in [
            ("10.0.0.1", true),
            ("100.64.0.9", true),
            ("192.168.1.1", true),
            ("20.1.2.3", true),
            ("fd00::1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("0.0.0.1", false),
            ("::", false),
            ("169.254.169.254", false),
            ("169.254.1.1", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("168.63.129.16", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("ff02::1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Reach::Pods.includes(ip), asked, "{ip}");
            let in_tests = asked || ip.to_canonical().is_loopback();
            assert_eq!(Reach::PodsAndLoopback.includes(ip), in_tests, "{ip}");
        }
        let imds = pod(":80/metadata/identity", None, "169.254.169.254");
        assert_eq!(
            Hook::of(&imds, Reach::PodsAndLoopback),
            Err(BadHook::Address("169.254.169.254".parse().unwrap()))
        );
    }

    #[test]
    fn a_pod_on_the_hosts_network_cannot_have_what_listens_on_its_node_asked() {
        let kubelet = Pod { host_network: true, ..pod(":10255/run", None, "10.1.2.3") };
        for reach in [Reach::Pods, Reach::PodsAndLoopback] {
            assert_eq!(Hook::of(&kubelet, reach), Err(BadHook::HostNetwork));
        }
    }

    #[test]
    fn the_loopback_is_asked_only_where_the_metadata_service_is_there_too() {
        for (imds, reach) in [
            ("http://127.0.0.1:8080/vm", Reach::PodsAndLoopback),
            ("http://[::1]:8080", Reach::PodsAndLoopback),
            ("http://169.254.169.254", Reach::Pods),
            ("http://10.0.0.1", Reach::Pods),
            ("http://localhost.example:80", Reach::Pods),
        ] {
            assert_eq!(Reach::beside(&imds.parse().unwrap()), reach, "{imds}");
        }
    }

    /// A hook that gives every caller this answer, and how often it was called.
    async fn service(answer: String) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(AtomicUsize::new(0));
        let called = calls.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                called.fetch_add(1, Ordering::SeqCst);
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                assert!(request.starts_with("post /checkpoint http/1.1\r\n"), "{request}");
                assert!(request.contains("content-type: application/json"), "{request}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, calls)
    }

    async fn post(port: u16) -> Outcome {
        let caller = Caller::new(Reach::PodsAndLoopback);
        let pod = pod(&format!(":{port}/checkpoint"), None, "127.0.0.1");
        caller.post(&Hook::of(&pod, caller.reach).unwrap().unwrap(), Bytes::from_static(b"{}"), None).await
    }

    #[tokio::test]
    async fn every_answer_lets_the_pod_go_and_only_2xx_is_no_failure() {
        for code in [200, 202, 204] {
            let (port, _) = service(format!("HTTP/1.1 {code} x\r\nContent-Length: 0\r\n\r\n")).await;
            assert_eq!(post(port).await, Outcome::Answered, "{code}");
        }
        let (port, _) = service("HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\ndisk\nfull".to_owned()).await;
        let failed = post(port).await;
        assert_eq!((failed.label(), &failed), ("status", &Outcome::Status(500, "disk\\nfull".into())));
        // An answer without end, or one that is far too long, is not read to its end.
        let huge = "x".repeat(1 << 20);
        let (port, _) =
            service(format!("HTTP/1.1 503 x\r\nContent-Length: {}\r\n\r\n{huge}", huge.len())).await;
        assert_eq!(post(port).await, Outcome::Status(503, String::new()));
        let (port, _) = service("HTTP/1.1 200 x\r\nContent-Length: 99\r\n\r\n".to_owned()).await;
        assert_eq!(post(port).await, Outcome::Answered);
        let (port, _) = service(String::new()).await;
        assert!(matches!(post(port).await, Outcome::Unreachable(_)));
        assert!(matches!(post(1).await, Outcome::Unreachable(_)));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (elsewhere, calls) = service("HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
        for code in [301, 302, 303, 307, 308] {
            let to = format!("http://127.0.0.1:{elsewhere}/checkpoint");
            let (port, _) =
                service(format!("HTTP/1.1 {code} x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")).await;
            assert_eq!(post(port).await, Outcome::Status(code, String::new()));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }
}
