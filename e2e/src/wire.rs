//! A wire between one agent and the apiserver that can be dead or torn: bytes, not requests, so that the agent's own
//! connection, encrypted and with all its requests side by side, is what suffers.

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// As a wire should be.
    Sound,
    /// Nothing arrives, in either direction, and nobody hangs up.
    Dead,
    /// Torn in the middle of whatever the apiserver says; a new connection fares no better.
    Torn,
}

/// A wire that is open.
pub struct OpenWire {
    /// Its near end, in place of the apiserver's address.
    pub url: String,
    state: watch::Sender<Wire>,
}

impl OpenWire {
    /// Leads to the server of this `https` address.
    pub async fn to(server: &str) -> Result<Self> {
        let far = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let state = watch::Sender::new(Wire::Sound);
        let of_connections = state.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, far.clone(), of_connections.subscribe()));
            }
        });
        Ok(Self { url, state })
    }

    /// From now on it is so.
    pub fn becomes(&self, wire: Wire) {
        self.state.send_replace(wire);
    }
}

async fn connect(near: TcpStream, far: String, state: watch::Receiver<Wire>) {
    // Whoever cannot be reached hangs up.
    let Ok(far) = TcpStream::connect(far).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // One end is both: the other half is dropped with it.
    tokio::select! {
        () = carry(near_in, far_out, state.clone(), false) => {}
        () = carry(far_in, near_out, state, true) => {}
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<Wire>,
    is_answer: bool,
) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        let wire = *state.borrow_and_update();
        match wire {
            Wire::Dead => {
                if state.wait_for(|wire| *wire != Wire::Dead).await.is_err() {
                    return;
                }
            }
            Wire::Torn if is_answer => {
                let _ = to.write_all(&bytes[..read / 2]).await;
                return;
            }
            Wire::Sound | Wire::Torn => {}
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
