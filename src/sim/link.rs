//! Links: what is sent takes its time on the sender's uplink, on the way, and on the receiver's
//! downlink.
//!
//! TCP as fluid flows at message granularity: an uplink serves its busy connections in turn, a
//! block at a time, which shares it fairly; a downlink takes blocks as they come. Small messages
//! wait behind the blocks of their own connection only, but their bytes are charged to the uplink.
//! What one end sends arrives in order.

use std::collections::VecDeque;
use std::time::Duration;

use super::event::{Agenda, End, NodeId, What, Wire};
use crate::proto::geometry::Block;
use crate::proto::time::Timestamp;
use crate::proto::wire::{Message, RawBlock};

/// Bytes of headers of a block's message.
const BLOCK_HEADER: f64 = 13.0;

/// One direction of a connection, and what its sender has asked of the other side.
#[derive(Default)]
pub(super) struct Direction {
    pub node: NodeId,
    pub open: bool,
    /// The other end has vanished: nothing that is sent arrives.
    pub severed: bool,
    queue: VecDeque<Wire>,
    /// Waits for its turn at the uplink, or is being sent.
    busy: bool,
    /// When the last block that has come to the other side's downlink is through.
    held_until: Timestamp,
    /// The node at this end lets the other one ask.
    pub unchoked: bool,
    /// Requests that have come to this end and are not answered.
    pub owed: usize,
    /// Blocks this end waits for, and the buffer each is meant for.
    pub asked: Vec<(Block, u32)>,
}

impl Direction {
    /// What this end says changes what the other one may do, and what it is owed.
    pub fn note(&mut self, wire: &Wire) {
        match wire {
            Wire::Message(Message::Unchoke) => self.unchoked = true,
            Wire::Message(Message::Choke) => self.unchoked = false,
            Wire::Message(Message::Reject(_)) | Wire::Block { .. } => {
                self.owed = self.owed.saturating_sub(1);
            }
            Wire::Message(_) | Wire::Close => {}
        }
    }
}

/// A connection.
pub(super) struct Conn {
    pub ends: [Direction; 2],
    /// One way.
    pub latency: Duration,
}

/// A node's access to the network.
pub(super) struct Access {
    up: f64,
    down: f64,
    turns: VecDeque<End>,
    sending: Option<(End, RawBlock, bool)>,
    /// Bytes of small messages that are not yet charged to a block.
    debt: f64,
    down_free: Timestamp,
}

impl Access {
    pub fn new(up: f64, down: f64) -> Self {
        Self {
            up,
            down,
            turns: VecDeque::new(),
            sending: None,
            debt: 0.0,
            down_free: Timestamp::ZERO,
        }
    }

    /// The machine is gone: what it was sending stays unsent.
    pub fn cut(&mut self) {
        self.turns.clear();
        self.sending = None;
    }

    /// A block has come to the downlink: when it is through.
    pub fn receive(&mut self, raw: RawBlock, now: Timestamp) -> Timestamp {
        let takes = Duration::from_secs_f64((f64::from(raw.length) + BLOCK_HEADER) / self.down);
        // It has been coming in while it was being sent, unless something else was in its way.
        self.down_free = (self.down_free + takes).max(now);
        self.down_free
    }
}

fn size(message: &Message) -> f64 {
    let payload = match message {
        Message::Bitfield(bytes) | Message::Extended(_, bytes) => bytes.len(),
        Message::Request(_) | Message::Cancel(_) | Message::Reject(_) => 12,
        _ => 4,
    };
    payload as f64 + 5.0
}

/// All connections there ever were, by number; the number is also the `PeerKey` at both ends.
#[derive(Default)]
pub(super) struct Net {
    pub conns: Vec<Conn>,
}

impl Net {
    /// A new connection; the first end belongs to who opened it.
    pub fn open(&mut self, from: NodeId, to: NodeId, latency: Duration) -> u32 {
        let end = |node| Direction { node, open: true, ..Direction::default() };
        self.conns.push(Conn { ends: [end(from), end(to)], latency });
        self.conns.len() as u32 - 1
    }

    pub fn end(&mut self, end: End) -> &mut Direction {
        &mut self.conns[end.conn as usize].ends[usize::from(end.side)]
    }

    pub fn end_ref(&self, end: End) -> &Direction {
        &self.conns[end.conn as usize].ends[usize::from(end.side)]
    }

    /// The end of `conn` that is at `node`.
    pub fn end_at(&self, conn: u32, node: NodeId) -> End {
        let side = u8::from(self.conns[conn as usize].ends[0].node != node);
        End { conn, side }
    }

    pub fn send(&mut self, from: End, wire: Wire, access: &mut Access, agenda: &mut Agenda) {
        let end = self.end(from);
        if end.severed {
            return;
        }
        if !end.busy && !matches!(wire, Wire::Block { .. }) {
            self.send_small(from, wire, access, agenda);
            return;
        }
        end.queue.push_back(wire);
        if !std::mem::replace(&mut end.busy, true) {
            access.turns.push_back(from);
        }
        self.serve(access, agenda);
    }

    fn send_small(&mut self, from: End, wire: Wire, access: &mut Access, agenda: &mut Agenda) {
        if let Wire::Message(message) = &wire {
            access.debt += size(message);
        }
        let latency = self.conns[from.conn as usize].latency;
        agenda.after(latency, What::Arrive(from.far(), wire));
    }

    /// Has an idle uplink send the next block.
    fn serve(&mut self, access: &mut Access, agenda: &mut Agenda) {
        while access.sending.is_none()
            && let Some(from) = access.turns.pop_front()
        {
            let node = self.end(from).node;
            match self.end(from).queue.pop_front() {
                Some(Wire::Block { raw, good }) => {
                    let bytes = f64::from(raw.length) + BLOCK_HEADER + access.debt;
                    access.debt = 0.0;
                    access.sending = Some((from, raw, good));
                    let takes = Duration::from_secs_f64(bytes / access.up);
                    agenda.after(takes, What::Sent(node));
                }
                Some(small) => {
                    self.send_small(from, small, access, agenda);
                    access.turns.push_front(from);
                }
                None => self.end(from).busy = false,
            }
        }
    }

    /// The uplink is done with a block, which goes on its way; which it was.
    pub fn sent(&mut self, access: &mut Access, agenda: &mut Agenda) -> Option<(End, RawBlock)> {
        let (from, raw, good) = access.sending.take()?;
        let latency = self.conns[from.conn as usize].latency;
        agenda.after(latency, What::Arrive(from.far(), Wire::Block { raw, good }));
        access.turns.push_back(from);
        self.serve(access, agenda);
        Some((from, raw))
    }

    /// Something has come to the downlink at `to`; given back if it is through already. It does not
    /// overtake what the other side sent before.
    pub fn arrive(
        &mut self,
        to: End,
        wire: Wire,
        access: &mut Access,
        agenda: &mut Agenda,
    ) -> Option<Wire> {
        let now = agenda.now();
        let held = &mut self.end(to.far()).held_until;
        let waits = *held >= now;
        if let Wire::Block { raw, .. } = &wire {
            *held = (*held).max(access.receive(*raw, now));
        }
        if !waits && *held <= now {
            return Some(wire);
        }
        agenda.at(*held, What::Deliver(to, wire));
        None
    }

    /// This end sends and hears nothing more.
    pub fn close(&mut self, end: End) {
        let end = self.end(end);
        end.open = false;
        end.queue = VecDeque::new();
        end.asked = Vec::new();
    }

    /// The node at `end` has vanished; the other end does not know, and waits for its words to be
    /// acknowledged.
    pub fn vanish(&mut self, end: End) {
        self.close(end);
        let far = self.end(end.far());
        far.severed = true;
        far.queue = VecDeque::new();
    }

    /// Takes back that `raw` was asked for; the block and its buffer, if it was.
    pub fn take_asked(&mut self, end: End, raw: RawBlock) -> Option<(Block, u32)> {
        let asked = &mut self.end(end).asked;
        let at = asked.iter().position(|(block, _)| RawBlock::from(*block) == raw)?;
        Some(asked.swap_remove(at))
    }
}
