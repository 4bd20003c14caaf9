//! Ports for servers that start after their port was picked.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

use anyhow::{Context, Result, bail};

/// Below the ports that systems give to outgoing connections, one of which would take the port between our look and the
/// server's start, or while a server is away.
const RANGE: Range<u16> = 20_000..32_000;

/// A listener on a port at random that nobody else listens on.
pub(crate) fn hold(on: IpAddr) -> Result<TcpListener> {
    for _ in 0..1000 {
        let random = RandomState::new().build_hasher().finish();
        let port = RANGE.start + (random % RANGE.len() as u64) as u16;
        if let Ok(listener) = TcpListener::bind(SocketAddr::new(on, port)) {
            return Ok(listener);
        }
    }
    bail!("no free port on {on} between {} and {}", RANGE.start, RANGE.end)
}

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> Result<u16> {
    let listener = hold(Ipv4Addr::LOCALHOST.into())?;
    Ok(listener.local_addr().context("a listener without an address")?.port())
}
