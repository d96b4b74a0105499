//! Listens on a port of the fabric with a packet socket, as a tap on the cable to host1 would.

use crate::fabric::{Judge, Seen};
use crate::topology::{FABRIC_NAMESPACE, HOSTS};
use crate::{probe, shell};
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Memory for frames that wait to be looked at.
const BUFFER_BYTES: usize = 64 << 20;

/// A capture that runs until it is stopped.
pub struct Capture {
    judge: Arc<Mutex<Judge>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Capture {
    /// Begins.
    pub fn start() -> Result<Self> {
        let port = HOSTS[0].fabric_port();
        let index = link_index(&port)?;
        let (judge, stop) = (Arc::new(Mutex::new(Judge::default())), Arc::new(AtomicBool::new(false)));
        let (for_thread, stopped) = (Arc::clone(&judge), Arc::clone(&stop));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            probe::inside(FABRIC_NAMESPACE, move || listen(index, &for_thread, &stopped, &ready))
        });
        is_ready.recv_timeout(Duration::from_secs(5)).context("the capture did not start")?;
        Ok(Self { judge, stop, thread: Some(thread) })
    }

    /// What was seen until now.
    pub fn seen(&self) -> Seen {
        // What is on the way is still looked at.
        std::thread::sleep(Duration::from_millis(300));
        self.judge.lock().unwrap_or_else(PoisonError::into_inner).seen().clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("lab: the capture on the fabric failed: {error:#}");
        }
    }
}

fn link_index(port: &str) -> Result<usize> {
    let text = shell::run(&format!("ip -n {FABRIC_NAMESPACE} -o link show {port}"))?;
    text.split(':').next().and_then(|number| number.trim().parse().ok()).with_context(|| format!("{port} has no index"))
}

fn listen(index: usize, judge: &Mutex<Judge>, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) -> Result<()> {
    let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&tap, sockopt::RcvBufForce, &BUFFER_BYTES)?;
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200))?;
    // The one who waits has given up if this fails.
    let _ = ready.send(());
    let mut frame = vec![0; 1 << 17];
    while !stop.load(Ordering::SeqCst) {
        match recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut frame) {
            Ok((length, Some(from))) if from.ifindex() == index => {
                judge.lock().unwrap_or_else(PoisonError::into_inner).take(&frame[..length]);
            }
            Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("packet socket"),
        }
    }
    Ok(())
}
