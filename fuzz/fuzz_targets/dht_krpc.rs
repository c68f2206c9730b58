//! Datagrams of the DHT: any bytes are a message or refused, and a message that is written is read
//! again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p2pfs::proto::dht::krpc::{Body, MAX_DATAGRAM, MAX_NODES, MAX_VALUES, Message, NoMessage};

fuzz_target!(|datagram: &[u8]| match Message::parse(datagram) {
    Ok(message) => {
        assert!(datagram.len() <= MAX_DATAGRAM);
        if let Body::Answer(answer) = &message.body {
            assert!(answer.contacts().count() <= 2 * MAX_NODES);
            assert!(answer.contacts().all(|contact| contact.addr.port() != 0));
            assert!(answer.values.len() <= MAX_VALUES);
        }
        let written = message.encode();
        if written.len() <= MAX_DATAGRAM {
            let again = Message::parse(&written);
            assert_eq!(again.as_ref().map(|message| message.encode()), Ok(written));
        }
    }
    Err(NoMessage::Refused { transaction, .. }) => assert!(!transaction.is_empty()),
    Err(NoMessage::Garbage) => {}
});
