//! The pure machines against small models of the world around them, under random events.

#[cfg(test)]
mod gate;
#[cfg(test)]
mod together;
#[cfg(test)]
mod worker;
