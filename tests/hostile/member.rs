//! A node with a credential of its own that speaks the control protocol by hand.

use shoal_net::control::{ControlConfig, ControlEvent, ControlHandle, ControlPlane};
use shoal_net::identity::{Identity, load_key};
use shoal_proto::control::{Join, Request, Response};
use shoal_proto::ids::NodeId;
use shoal_testkit::Region;
use shoal_testkit::settings::issue_with;
use std::fs;
use std::net::SocketAddr;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// The node, connected to the region's tracker.
pub(crate) struct Member {
    runtime: Runtime,
    control: ControlHandle,
    credential: Vec<u8>,
    tracker: NodeId,
    addr: SocketAddr,
    _events: mpsc::Receiver<ControlEvent>,
}

impl Member {
    /// Connects with a new key and a credential that `options` of `shoal cluster issue` shape.
    pub(crate) fn issue(region: &Region, name: &str, locality: &str, options: &[&str]) -> Self {
        issue_with(super::SHOAL, region.folder.path(), name, "peer", locality, options);
        Self::connect(region, name)
    }

    /// Connects with the key and the credential in a folder of the region.
    fn connect(region: &Region, name: &str) -> Self {
        let dir = region.folder.path().join(name);
        let identity = Identity::new(&load_key(&dir.join("node.key")).unwrap());
        let credential = fs::read(dir.join("node.cred")).unwrap();
        let addr = region.tracker.addrs["control"][0].as_str().unwrap().parse().unwrap();
        let runtime = Runtime::new().unwrap();
        let (control, events, tracker) = runtime.block_on(async {
            let (control, events) = ControlPlane::start(ControlConfig::new(identity, Vec::new())).await.unwrap();
            let tracker = control.connect(addr, None).await.unwrap();
            (control, events, tracker)
        });
        Self { runtime, control, credential, tracker, addr, _events: events }
    }

    /// Sends a request to the tracker and returns the answer. The tracker ends a connection after it refused a join, so
    /// the next request may need another one.
    pub(crate) fn request(&self, request: Request) -> Response {
        self.runtime.block_on(async {
            loop {
                if let Ok(answer) = self.control.request(self.tracker, request.clone()).await {
                    return answer;
                }
                self.control.connect(self.addr, None).await.unwrap();
            }
        })
    }

    /// Joins with these claims and returns the answer.
    pub(crate) fn join(&self, weight: u16, addrs: &[&str]) -> Response {
        let addrs: Vec<SocketAddr> = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        let credential = self.credential.clone();
        self.request(Request::Join(Join { credential, addrs, weight, uplink_mbit: 0, known: None }))
    }

    /// Joins with claims that the tracker must refuse, and returns its reason.
    pub(crate) fn refused(&self, weight: u16, addrs: &[&str]) -> String {
        match self.join(weight, addrs) {
            Response::Refused { why } => why,
            other => panic!("weight {weight} at {addrs:?} joined: {other:?}"),
        }
    }
}
