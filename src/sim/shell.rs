//! What the engine is to a real torrent: carries out what a machine says, and has each of its words
//! checked.

use std::time::Duration;

use super::checks::Rule;
use super::event::{NodeId, What, Wire};
use super::plan::{Leave, Role};
use super::world::World;
use crate::proto::choker::CHOKE_INTERVAL;
use crate::proto::geometry::Block;
use crate::proto::peer::Disconnect;
use crate::proto::swarm::PeerKey;
use crate::proto::time::Timestamp;
use crate::proto::torrent::{HandleId, Output, ReadEnd, Ticket};
use crate::proto::wire::{Message, RawBlock};

/// How long a piece takes to be hashed.
const HASHING: Duration = Duration::from_millis(1);

/// How long a piece takes to be written.
const WRITING: Duration = Duration::from_millis(2);

/// The one file handle of a node.
const HANDLE: HandleId = HandleId(1);

impl World {
    /// Has the machine of `id` decide, and carries out what it says.
    pub fn settle(&mut self, id: NodeId) {
        let now = self.agenda.now();
        if !self.nodes[id as usize].present {
            return;
        }
        self.node(id).machine.plan(now);
        while let Some(output) = self.node(id).machine.poll_output() {
            self.carry_out(id, output);
        }
        if std::mem::take(&mut self.node(id).wants_unchoke) {
            self.choke(id, false);
        }
        self.tell_trackers(id);
        let node = &mut self.nodes[id as usize];
        let wake = node.machine.poll_timeout().max(now + Duration::from_millis(1));
        if wake < node.wake_at {
            node.wake_at = wake;
            self.agenda.at(wake, What::Wake(id));
        }
    }

    fn carry_out(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Send(key, message) => self.say(id, key, Wire::Message(message)),
            Output::Request(key, block) => {
                self.request(id, key, block);
                self.ask_too_much(id, key, block);
            }
            Output::Cancel(key, block) => {
                let end = self.net.end_at(key.0 as u32, id);
                if let Some((block, buffer)) = self.net.take_asked(end, block.into()) {
                    self.node(id).disk.not_asked(block, buffer);
                    self.say(id, key, Wire::Message(Message::Cancel(block.into())));
                }
            }
            Output::Upload(key, raw) => self.upload(id, key, raw),
            Output::Disconnect(key, reason) => self.disconnect(id, key, reason),
            Output::Connect(addr) => self.connect(id, addr),
            // The metadata is known from the start.
            Output::Metadata(_) | Output::DhtNode(_) | Output::SeenAt { .. } => {}
            Output::Verify { piece, .. } => self.agenda.after(HASHING, What::Judged(id, piece)),
            Output::Write(piece) => self.agenda.after(WRITING, What::Written(id, piece)),
            Output::CheckAtRest(piece, _) => {
                let now = self.agenda.now();
                let node = self.node(id);
                let here = node.disk.content[piece.index()].is_some();
                node.machine.checked_at_rest(piece, here, now);
            }
            Output::Discard(piece) => {
                let geometry = self.geometry.clone();
                self.node(id).disk.discard(&geometry, piece);
            }
            Output::Reply(_, ReadEnd::Ready) if self.breaks(Rule::Reply) => {}
            Output::Reply(ticket, end) => self.replied(id, ticket, end),
            Output::WantsUnchoke => self.node(id).wants_unchoke = true,
            Output::Complete => self.complete(id),
            // The simulated torrent has no v2 half.
            Output::VerifyBlocks(..)
            | Output::Refuse(..)
            | Output::HashBlocks(..)
            | Output::KeepLayer(..)
            | Output::Contradiction => {}
        }
    }

    fn say(&mut self, id: NodeId, key: PeerKey, wire: Wire) {
        let end = self.net.end_at(key.0 as u32, id);
        let direction = self.net.end(end);
        if direction.open {
            direction.note(&wire);
            let access = &mut self.nodes[id as usize].access;
            self.net.send(end, wire, access, &mut self.agenda);
        }
    }

    pub fn request(&mut self, id: NodeId, key: PeerKey, block: Block) {
        let end = self.net.end_at(key.0 as u32, id);
        if !self.net.end(end).open {
            return;
        }
        self.check_request(id, end, block);
        let buffer = self.nodes[id as usize].disk.buffer(&self.geometry, block.piece);
        let times = &mut buffer.asked[block.index as usize];
        *times = times.saturating_add(1);
        let asked = (block, buffer.id);
        self.net.end(end).asked.push(asked);
        self.check_memory(id);
        self.say(id, key, Wire::Message(Message::Request(block.into())));
    }

    /// Asks for more than the machine wants asked, if that rule is to be broken.
    fn ask_too_much(&mut self, id: NodeId, key: PeerKey, block: Block) {
        if self.breaks(Rule::AskOnce) {
            self.request(id, key, block);
        } else if self.breaks(Rule::AskOne) {
            let conns = self.nodes[id as usize].links.values().map(|end| end.conn.into());
            if let Some(other) = conns.map(PeerKey).find(|other| *other != key) {
                self.request(id, other, block);
            }
        }
    }

    fn upload(&mut self, id: NodeId, key: PeerKey, raw: RawBlock) {
        let now = self.agenda.now();
        let lies = self.nodes[id as usize].plan.role.lies();
        let content = self.nodes[id as usize].disk.content.get(raw.piece as usize);
        let Some(right) = content.copied().flatten() else {
            self.violation(|| format!("node {id} would send piece {} unverified", raw.piece));
            return;
        };
        match self.nodes[id as usize].plan.role {
            _ if self.breaks(Rule::Serve) => {}
            Role::FreeRider => self.node(id).machine.uploaded(key, raw, false, now),
            Role::Staller => {}
            _ => self.say(id, key, Wire::Block { raw, good: right && !lies }),
        }
    }

    fn disconnect(&mut self, id: NodeId, key: PeerKey, reason: Disconnect) {
        let end = self.net.end_at(key.0 as u32, id);
        if !self.net.end(end).open {
            return;
        }
        let other = self.far_node(end);
        match reason {
            Disconnect::BadData => _ = self.bans.insert((id, other)),
            Disconnect::Timeout => self.timeouts += 1,
            _ => {}
        }
        self.forget_asked(id, end);
        self.node(id).links.remove(&other);
        self.hang_up(id, end);
    }

    fn complete(&mut self, id: NodeId) {
        let now = self.agenda.now();
        let node = self.node(id);
        if node.done_at.is_some() {
            return;
        }
        node.done_at = Some(now);
        let leaves = node.plan.leaves;
        let counted = node.plan.role.contributes() || node.plan.role == Role::FreeRider;
        let missing = node.disk.content.iter().filter(|c| c.is_none()).count();
        self.unfinished -= usize::from(counted);
        if missing > 0 {
            self.violation(|| format!("node {id} is complete and lacks {missing} pieces"));
        }
        if let Leave::AfterDone(wait) = leaves {
            self.agenda.after(wait, What::Leave(id));
        }
    }

    // ---- choking

    pub fn choke_round(&mut self, id: NodeId) {
        if self.nodes[id as usize].present {
            self.agenda.after(CHOKE_INTERVAL, What::Choke(id));
            self.choke(id, true);
            self.settle(id);
        }
    }

    /// A round of the choker, or between rounds free slots for who has become interested.
    fn choke(&mut self, id: NodeId, round: bool) {
        let (now, limited) = (self.agenda.now(), self.plan.upload_limits);
        let unchokes_nobody = self.breaks(Rule::Unchoke);
        let node = self.node(id);
        if node.plan.role == Role::FreeRider || unchokes_nobody {
            return;
        }
        let capacity = Some(node.plan.up).filter(|_| limited);
        let candidates = node.machine.candidates(0, now);
        let unchoked = if round {
            node.choker.round(&candidates, capacity, now)
        } else {
            node.choker.fill(&candidates, now)
        };
        let keys: Vec<_> = unchoked.into_iter().map(|(_, key)| key).collect();
        node.machine.set_unchoked(&keys, now);
        while let Some(output) = self.node(id).machine.poll_output() {
            self.carry_out(id, output);
        }
        self.check_unchoked(id);
    }

    // ---- reading

    /// Has the program of `id` read on, if there is one.
    pub fn read_on(&mut self, id: NodeId) {
        let (now, total) = (self.agenda.now(), self.geometry.total());
        let node = self.node(id);
        let next = node.program.as_mut().and_then(|program| program.read(total, now));
        if let Some((ticket, range, ahead)) = next {
            if let Some(ahead) = ahead {
                node.machine.read_ahead(HANDLE, ahead);
            }
            node.machine.read(ticket, HANDLE, range, now, Timestamp::FAR_FUTURE);
        }
    }

    fn replied(&mut self, id: NodeId, ticket: Ticket, end: ReadEnd) {
        let (now, geometry) = (self.agenda.now(), self.geometry.clone());
        let Some(program) = self.node(id).program.as_mut() else { return };
        let Some((_, range, since)) = program.waits.take().filter(|(t, ..)| *t == ticket) else {
            return;
        };
        program.waited.push(now.since(since).as_secs_f64());
        let content = &self.nodes[id as usize].disk.content;
        let unverified = geometry.pieces_of(range).any(|p| content[p.index()].is_none());
        if unverified || end != ReadEnd::Ready {
            self.violation(|| {
                format!("a read on node {id} ended as {end:?}, unverified bytes: {unverified}")
            });
        }
        self.read_on(id);
        // What the program reads now has to be asked for now.
        self.node(id).machine.plan(now);
    }
}
