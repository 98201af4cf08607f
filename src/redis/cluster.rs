//! What a node of a Redis Cluster says of who serves which slot: the reply of `CLUSTER SLOTS`, read.
//!
//! A node is announced as the Cluster's `cluster-preferred-endpoint-type` says: by its address, by its host name ("?"
//! while it has none), or not at all, which means "where you asked me". What is not preferred stands in the node's
//! metadata. The format is Redis' own: <https://redis.io/docs/latest/commands/cluster-slots/>.

use redis::Value;

/// The most nodes that are remembered, beside the configured ones.
const REMEMBERED: usize = 32;

/// A node's host and port.
pub(super) type Node = (String, u16);

/// Who serves a slot, and whom one may ask the next time.
#[derive(Debug, PartialEq)]
pub(super) struct Served {
    pub(super) primary: Node,
    /// Those of all slots.
    pub(super) primaries: Vec<Node>,
    pub(super) nodes: Vec<Node>,
}

/// Reads the reply for one slot; `asked` is the host of the node that gave it. In words, why nobody can be named.
pub(super) fn read(reply: &Value, slot: u16, asked: &str) -> Result<Served, String> {
    let ranges = reply.as_sequence().ok_or("its answer to CLUSTER SLOTS is not a list")?;
    let (mut primary, mut primaries, mut nodes): (Option<Node>, Vec<Node>, Vec<Node>) = (None, Vec::new(), Vec::new());
    for range in ranges {
        let Some([Value::Int(first), Value::Int(last), servers @ ..]) = range.as_sequence() else {
            return Err("its answer to CLUSTER SLOTS has a range without slots".into());
        };
        let servers: Vec<Option<Node>> = servers.iter().map(|server| node(server, asked)).collect();
        // The first is the primary, the others are its replicas.
        let first_server = servers.first().cloned().flatten();
        primaries.extend(first_server.clone().filter(|node| !primaries.contains(node)));
        if (*first..=*last).contains(&i64::from(slot)) {
            primary = first_server;
        }
        for node in servers.into_iter().flatten() {
            if nodes.len() < REMEMBERED && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
    }
    let primary = primary.ok_or_else(|| format!("it knows no node that serves the slot {slot} of these keys"))?;
    Ok(Served { primary, primaries, nodes })
}

fn node(server: &Value, asked: &str) -> Option<Node> {
    let [host, Value::Int(port), more @ ..] = server.as_sequence()? else { return None };
    let host = match host {
        Value::Nil => asked.to_owned(),
        host => match text(host)? {
            "" => asked.to_owned(),
            "?" => metadata(more.get(1)?, "ip")?.to_owned(),
            host => host.to_owned(),
        },
    };
    Some((host, u16::try_from(*port).ok()?))
}

fn metadata<'a>(pairs: &'a Value, name: &str) -> Option<&'a str> {
    pairs.as_map_iter()?.find_map(|(key, value)| (text(key) == Some(name)).then(|| text(value)).flatten())
}

/// A string of a reply.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn server(host: Value, port: i64, metadata: Value) -> Value {
        Value::Array(vec![host, Value::Int(port), words("0123"), metadata])
    }

    fn range(first: i64, last: i64, servers: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], servers].concat())
    }

    fn at(host: &str, port: u16) -> Node {
        (host.into(), port)
    }

    #[test]
    fn the_primary_of_the_slot_is_the_first_of_its_range() {
        let none = || Value::Map(vec![]);
        let reply = Value::Array(vec![
            range(0, 99, vec![server(words("10.0.0.1"), 1, none()), server(words("10.0.0.2"), 2, none())]),
            range(100, 16383, vec![server(words("10.0.0.3"), 3, none())]),
        ]);
        let served = read(&reply, 100, "seed").expect("served");
        assert_eq!(served.primary, at("10.0.0.3", 3));
        assert_eq!(served.nodes, [at("10.0.0.1", 1), at("10.0.0.2", 2), at("10.0.0.3", 3)]);
        assert_eq!(served.primaries, [at("10.0.0.1", 1), at("10.0.0.3", 3)]);
        assert_eq!(read(&reply, 99, "seed").expect("served").primary, at("10.0.0.1", 1));
    }

    #[test]
    fn a_node_is_where_it_is_announced_or_else_where_it_was_asked() {
        let ip = || Value::Map(vec![(words("ip"), words("10.0.0.9"))]);
        let flat = || Value::Array(vec![words("ip"), words("10.0.0.8")]);
        for (host, metadata, expected) in [
            (Value::Nil, ip(), Some("seed")),
            (words(""), ip(), Some("seed")),
            (words("node.example"), ip(), Some("node.example")),
            (words("?"), ip(), Some("10.0.0.9")),
            (words("?"), flat(), Some("10.0.0.8")),
            (words("?"), Value::Map(vec![]), None),
        ] {
            let reply = Value::Array(vec![range(0, 16383, vec![server(host, 7000, metadata)])]);
            let found = read(&reply, 5, "seed").ok().map(|served| served.primary.0);
            assert_eq!(found.as_deref(), expected);
        }
    }

    #[test]
    fn what_is_no_answer_is_named() {
        let gap = Value::Array(vec![range(0, 4, vec![server(words("a"), 1, Value::Map(vec![]))])]);
        assert!(read(&gap, 5, "seed").expect_err("a gap").contains("slot 5"));
        assert!(read(&Value::Int(1), 5, "seed").is_err() && read(&Value::Array(vec![Value::Nil]), 5, "s").is_err());
        let wrong_port = Value::Array(vec![range(0, 9, vec![server(words("a"), 70_000, Value::Map(vec![]))])]);
        assert!(read(&wrong_port, 5, "seed").is_err());
    }
}
