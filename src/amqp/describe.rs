//! What an error of the client library means, in words for an operator.

use lapin::ErrorKind;

/// The cause, without the library's vocabulary where there is a plainer one.
pub(super) fn describe(error: &lapin::Error) -> String {
    match error.kind() {
        // The broker's own words, e.g. "NOT_FOUND - no queue 'x' in vhost '/'".
        ErrorKind::ProtocolError(error) => error.get_message().as_str().to_owned(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "the broker has been silent for two heartbeats".to_owned(),
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_) => {
            "the channel is closed".to_owned()
        }
        ErrorKind::InvalidConnectionState(_) => "the connection is closed".to_owned(),
        // The parser's text holds the bytes that it could not read.
        ErrorKind::ParsingError(_) => {
            "the broker sent something that cannot be read as AMQP 0-9-1".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The AMQP reply code of the broker's refusal (AMQP 0-9-1, 1.2), when it was one.
pub(super) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
