//! News of links (which came, changed or went) and of the kernel's addresses and routes.

use super::KernelError;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use std::collections::BTreeSet;
use std::future::ready;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Changes that come together are told together.
const SETTLE: Duration = Duration::from_millis(20);

/// Stands for routes and addresses among the indices of links.
const NO_LINK: u32 = 0;

/// Follows the links, addresses and routes of the namespace that it was made in.
#[allow(missing_debug_implementations)]
pub struct LinkWatch {
    indices: BoxStream<'static, u32>,
    task: JoinHandle<()>,
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LinkWatch {
    /// Needs a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let opened = rtnetlink::new_multicast_connection(&groups);
        let (connection, _, messages) = opened.map_err(|error| KernelError::Netlink {
            action: "follow the links".to_owned(),
            reason: error.to_string(),
        })?;
        // What the kernel could not tell in time is lost, and nobody knows of which link it was.
        let whole = messages.take_while(|(message, _)| ready(!matches!(message.payload, NetlinkPayload::Overrun(_))));
        let indices = whole.filter_map(|(message, _)| async move {
            match message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => Some(link.header.index),
                NetlinkPayload::InnerMessage(_) => Some(NO_LINK),
                _ => None,
            }
        });
        Ok(Self { indices: indices.boxed(), task: tokio::spawn(connection) })
    }

    /// Interface indices of the links that changed, 0 for routes and addresses; `None` when something was
    /// missed: open another, and look at everything.
    pub async fn changed(&mut self) -> Option<BTreeSet<u32>> {
        let mut changed = BTreeSet::from([self.indices.next().await?]);
        let settle = tokio::time::sleep(SETTLE);
        tokio::pin!(settle);
        loop {
            tokio::select! {
                index = self.indices.next() => changed.insert(index?),
                () = &mut settle => return Some(changed),
            };
        }
    }
}
