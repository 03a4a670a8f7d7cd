//! Where the frames of a WebSocket begin and end (RFC 6455, 5.2): what is needed to say goodbye in
//! the place of a sandbox that ended without.

/// What a server says before it ends (5.5.1): status 1001, "going away". Not masked, as it comes
/// from the server's side.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 8;
const MASKED: u8 = 0x80;
const MASK_LENGTH: u64 = 4;

/// Follows the frames that one side sends.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    at: At,
    /// It has said goodbye itself.
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// Before a frame.
    #[default]
    Start,
    /// Before the short length.
    Length,
    /// In the long length: bytes of it that are to come, what came, and bytes of the mask.
    Extended { left: u8, value: u64, mask: u64 },
    /// In the mask and the payload: bytes that are to come.
    Payload { left: u64 },
}

impl Frames {
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            bytes = rest;
            self.at = match self.at {
                At::Start => {
                    self.closed |= first & OPCODE == CLOSE;
                    At::Length
                }
                At::Length => {
                    let mask = if first & MASKED == 0 { 0 } else { MASK_LENGTH };
                    match first & !MASKED {
                        126 => At::Extended { left: 2, value: 0, mask },
                        127 => At::Extended { left: 8, value: 0, mask },
                        length => At::payload(u64::from(length) + mask),
                    }
                }
                At::Extended { left, value, mask } => {
                    let value = value << 8 | u64::from(first);
                    match left {
                        0 | 1 => At::payload(value.saturating_add(mask)),
                        _ => At::Extended { left: left - 1, value, mask },
                    }
                }
                At::Payload { left } => {
                    let more = usize::try_from(left - 1).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = bytes.get(more..).unwrap_or_default();
                    At::payload(left - 1 - more as u64)
                }
            };
        }
    }

    /// Whether a frame may be sent now in this side's place, and none was that ends everything.
    pub(crate) const fn may_say_goodbye(&self) -> bool {
        matches!(self.at, At::Start) && !self.closed
    }
}

impl At {
    const fn payload(left: u64) -> Self {
        if left == 0 { Self::Start } else { Self::Payload { left } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, masked: bool, length: usize) -> Vec<u8> {
        let mask = if masked { MASKED } else { 0 };
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(mask | u8::try_from(length).unwrap()),
            126..0x1_0000 => {
                bytes.push(mask | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0x88; length + if masked { 4 } else { 0 }]);
        bytes
    }

    #[test]
    fn only_between_frames_a_goodbye_may_be_said_however_they_are_cut() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for masked in [false, true] {
                let bytes = frame(0x82, masked, length);
                for piece in [1, 2, 3, 1000, bytes.len()] {
                    let mut frames = Frames::default();
                    assert!(frames.may_say_goodbye());
                    let mut passed = 0;
                    for part in bytes.chunks(piece) {
                        frames.pass(part);
                        passed += part.len();
                        assert_eq!(frames.may_say_goodbye(), passed == bytes.len(), "{length}");
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_said_after_a_goodbye() {
        let mut frames = Frames::default();
        frames.pass(&frame(0x89, false, 3));
        assert!(frames.may_say_goodbye());
        frames.pass(&GOING_AWAY);
        assert!(!frames.may_say_goodbye());
    }
}
