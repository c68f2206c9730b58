//! Framing: four bytes of length, big-endian, and that many bytes of JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes of JSON in one message (1 MiB). Longer answers are sent as several messages.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Why a message could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, or was closed in the middle of a message.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// Its JSON is not a message of this protocol.
    #[error("a message is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// The bytes of one frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Sends one message.
pub async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FrameError> {
    Ok(to.write_all(&encode(message)?).await?)
}

/// Receives one message; `None` when the other side closed between two messages. What is
/// allocated grows with what arrives, not with what was announced.
pub async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<T>, FrameError> {
    let mut header = [0; 4];
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLong(length));
    }
    let mut json = Vec::new();
    if from.take(length as u64).read_to_end(&mut json).await? < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&json)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<Option<T>, FrameError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(read(&mut bytes))
    }

    #[test]
    fn a_closed_stream_is_no_message() {
        assert!(decode::<String>(b"").unwrap().is_none());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_both_sides() {
        assert!(matches!(encode(&"x".repeat(MAX_MESSAGE)), Err(FrameError::TooLong(_))));
        let announced = ((MAX_MESSAGE + 1) as u32).to_be_bytes();
        assert!(matches!(decode::<String>(&announced), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn what_was_sent_is_received(text in ".{0,300}") {
            prop_assert_eq!(decode::<String>(&encode(&text).unwrap()).unwrap(), Some(text));
        }

        #[test]
        fn a_cut_message_is_an_error(text in ".{0,100}", cut in 1usize..100) {
            let frame = encode(&text).unwrap();
            let kept = frame.len().saturating_sub(cut).max(1);
            prop_assert!(decode::<String>(&frame[..kept]).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_understood(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = decode::<super::super::Call>(&bytes);
        }
    }
}
