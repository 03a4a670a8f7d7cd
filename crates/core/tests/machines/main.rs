//! The pure machines against small models of the world around them, under random events.

#[cfg(test)]
mod bytes;
#[cfg(test)]
#[path = "../../../../fuzz/src/corpus.rs"]
mod corpus;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod together;
#[cfg(test)]
mod worker;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuzzers_found_keeps_to_the_models() {
        corpus::replay("gate", |bytes| gate::play(bytes::case(bytes, &gate::step())));
        corpus::replay("worker", |bytes| worker::play(bytes::case(bytes, &worker::step())));
        corpus::replay("cluster", |bytes| together::play(bytes::case(bytes, &together::step())));
    }
}
