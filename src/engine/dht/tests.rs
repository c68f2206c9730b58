use std::net::Ipv4Addr;

use tokio::time::timeout;

use super::*;
use crate::proto::dht::Announce;

/// Enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> NodeConfig {
    NodeConfig { listen: vec![Ipv4Addr::LOCALHOST.into()], ..NodeConfig::default() }
}

/// A node on loopback that begins with another one.
fn node(first: Option<&Node>) -> Node {
    let bootstrap = first.map(|first| first.local_addrs()[0].to_string()).into_iter().collect();
    Node::start(NodeConfig { bootstrap, ..config() }).unwrap()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test]
async fn what_one_node_announces_another_finds() {
    let first = node(None);
    let nodes: Vec<_> = (0..4).map(|_| node(Some(&first))).collect();
    for node in &nodes {
        assert!(in_time(node.wait_for_nodes()).await);
    }
    let hash = InfoHash::new([7; 20]);
    let announce = Announce { port: 4_242, implied: false, seed: false };
    let options = GetPeers { announce: Some(announce), ..GetPeers::default() };
    let told = in_time(nodes[0].get_peers(hash, options).await.outcome()).await;
    assert!(matches!(told, Some(Outcome::Peers { announced, .. }) if announced > 0), "{told:?}");
    let mut found = nodes[3].get_peers(hash, GetPeers::default()).await;
    let expected: SocketAddr = (Ipv4Addr::LOCALHOST, 4_242).into();
    let event = in_time(found.next()).await;
    assert!(
        matches!(&event, Some(Event::Peers { peers, .. }) if peers == &[expected]),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_ping_says_who_is_there() {
    let (one, other) = (node(None), node(None));
    let (contact, _) = in_time(one.ping(other.local_addrs()[0])).await.unwrap();
    assert_eq!(Some(contact.id), other.stats().ids[0]);
    other.shutdown().await;
    assert_eq!(in_time(one.ping(other.local_addrs()[0])).await, None);
}

#[tokio::test]
async fn a_node_takes_up_where_it_left_off() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Some(folder.path().join("dht"));
    let first = node(None);
    let bootstrap = vec![first.local_addrs()[0].to_string()];
    let begun = Node::start(NodeConfig { bootstrap, saved: saved.clone(), ..config() }).unwrap();
    assert!(in_time(begun.wait_for_nodes()).await);
    let id = begun.stats().ids;
    in_time(begun.shutdown()).await;
    let again = Node::start(NodeConfig { saved, ..config() }).unwrap();
    assert!(in_time(again.wait_for_nodes()).await);
    assert_eq!(again.stats().ids, id);
}

#[tokio::test]
async fn a_node_that_nobody_has_any_more_ends() {
    let held = node(None);
    let task = held.task.clone();
    drop(held);
    in_time(task.wait()).await;
}

#[test]
fn who_listens_on_loopback_does_not_ask_the_public_routers() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(public_routers(&[ip("127.0.0.1"), ip("::1")]), Vec::<String>::new());
    assert_eq!(public_routers(&[]).len(), ROUTERS.len());
    assert_eq!(public_routers(&[ip("127.0.0.1"), ip("192.0.2.1")]).len(), ROUTERS.len());
}
