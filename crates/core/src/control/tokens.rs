//! Tokens of the API: one record, one write on its way at a time.
//!
//! What was asked for is answered when it is durable, and only then allows or forbids anything. A
//! write whose outcome is unknown is written again until it is known; who asked hears so at once.

use std::sync::Arc;

use crate::{
    Access, ApiToken, ApiTokens, DataPlaneId, Digest, RequestId, TokenView, Write, WriteToken,
    access::MAX_TOKENS,
    control::{
        Answer, Control, Effect, Outcome, REWRITE, Refusal,
        cluster::{Author, Cluster},
        timers::Timer,
    },
    frame::ToDataPlane,
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    known: Arc<ApiTokens>,
    /// In the leader's state directory.
    own: Option<Digest>,
    writing: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    /// `None` while it waits to be written again.
    token: Option<WriteToken>,
    next: Arc<ApiTokens>,
    /// Who waits, and for which answer; nobody once it was in doubt.
    asker: Option<(RequestId, Answer)>,
}

/// How tokens change.
#[derive(Debug)]
pub(super) enum Change {
    Make(ApiToken),
    Revoke(Arc<str>),
}

impl Tokens {
    pub(super) fn new(known: Arc<ApiTokens>, own: Option<Digest>) -> Self {
        Self { known, own, writing: None }
    }

    /// What data planes are told.
    fn views(&self) -> Vec<TokenView> {
        let own = self.own.map(|hash| TokenView { hash, access: Access::Admin, expires_ms: None });
        self.known.all().iter().map(TokenView::from).chain(own).collect()
    }

    pub(super) const fn known(&self) -> &Arc<ApiTokens> {
        &self.known
    }

    /// Begins a change, or says why not.
    pub(super) fn change(
        &mut self,
        c: &mut Cluster,
        request: RequestId,
        change: Change,
        wall_ms: u64,
    ) -> Option<Refusal> {
        if self.writing.is_some() {
            // People make tokens one after the other; whoever meets another one tries again.
            return Some(Refusal::Busy { limit: 1 });
        }
        let (next, answer) = match change {
            Change::Make(token) => {
                let name = Arc::clone(&token.name);
                if self.known.named(&name).is_some_and(|token| token.is_good(wall_ms)) {
                    return Some(Refusal::TokenTaken { name });
                }
                let next = self.known.without(&name).with(token, wall_ms);
                if next.all().len() > MAX_TOKENS {
                    return Some(Refusal::TooManyTokens { limit: MAX_TOKENS });
                }
                (next, Answer::TokenMade { name })
            }
            Change::Revoke(name) => {
                if self.known.named(&name).is_none() {
                    return Some(Refusal::NoToken { name });
                }
                (self.known.without(&name), Answer::TokenRevoked { name })
            }
        };
        let asker = Some((request, answer));
        self.writing = Some(Writing { token: None, next: Arc::new(next), asker });
        self.write(c);
        None
    }

    /// Sends the write that is due, for the first time or again.
    fn write(&mut self, c: &mut Cluster) {
        if let Some(writing) = self.writing.as_mut().filter(|writing| writing.token.is_none()) {
            let write = Write::PutTokens(Arc::clone(&writing.next));
            writing.token = Some(c.persist(Author::Tokens, write));
        }
    }

    /// The store answered; whether other tokens count from now on.
    fn written(&mut self, c: &mut Cluster, token: WriteToken, outcome: Outcome) -> bool {
        let Some(mut writing) = self.writing.take_if(|writing| writing.token == Some(token)) else {
            return false;
        };
        match (outcome, writing.asker.take()) {
            (Outcome::Ok { .. }, asker) => {
                self.known = writing.next;
                if let Some((request, answer)) = asker {
                    c.reply(request, Ok(answer));
                }
                return true;
            }
            (Outcome::Refused, Some((request, _))) => {
                c.reply(request, Err(Refusal::StoreUnavailable));
            }
            (Outcome::Refused | Outcome::Unknown, asker) => {
                if let Some((request, _)) = asker {
                    c.reply(request, Err(Refusal::InDoubt));
                }
                writing.token = None;
                self.writing = Some(writing);
                c.timers.set(Timer::RewriteTokens, c.now.after(REWRITE));
            }
        }
        false
    }
}

impl Control {
    pub(super) fn rewrite_tokens(&mut self) {
        self.tokens.write(&mut self.cluster);
    }

    pub(super) fn tokens_written(&mut self, token: WriteToken, outcome: Outcome) {
        if self.tokens.written(&mut self.cluster, token, outcome) {
            let tokens = Arc::clone(self.tokens.known());
            self.cluster.effects.push_back(Effect::Admit { tokens });
            let told: Vec<_> = self.cluster.peers.checking_tokens().collect();
            for data_plane in told {
                self.tell_tokens(data_plane);
            }
        }
    }

    /// Before it is told of any function that asks for them.
    pub(super) fn tell_tokens(&mut self, to: DataPlaneId) {
        self.cluster.tell(to, ToDataPlane::Tokens { tokens: self.tokens.views() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Access, ClusterId, Digest, Epoch, Office, Records, Time,
        control::{Call, Config, Event},
    };

    fn control() -> Control {
        let office = Office { cluster: ClusterId(1), epoch: Epoch(1) };
        let mut control =
            Control::new(Time(0), Config { office, seed: 0, own_token: None }, Records::default());
        effects(&mut control);
        control
    }

    fn effects(control: &mut Control) -> Vec<Effect> {
        std::iter::from_fn(|| control.poll_effect()).collect()
    }

    fn token(name: &str) -> ApiToken {
        let hash = Digest([7; 32]);
        ApiToken { name: name.into(), access: Access::Deploy, hash, made_ms: 1, expires_ms: None }
    }

    fn ask(control: &mut Control, id: u64, call: Call) -> Vec<Effect> {
        let asked = Event::Asked { request: RequestId(id), call, wall_ms: 5 };
        control.handle(Time(0), asked);
        effects(control)
    }

    fn make(control: &mut Control, id: u64, name: &str) -> Vec<Effect> {
        ask(control, id, Call::MakeToken { token: token(name) })
    }

    fn persisted(control: &mut Control, token: u64, outcome: Outcome) -> Vec<Effect> {
        control.handle(Time(0), Event::Persisted { token: WriteToken(token), outcome });
        effects(control)
    }

    fn written(token: u64, tokens: &Arc<ApiTokens>) -> Effect {
        Effect::Persist { token: WriteToken(token), write: Write::PutTokens(Arc::clone(tokens)) }
    }

    fn reply(to: u64, result: Result<Answer, Refusal>) -> Effect {
        Effect::Reply { to: RequestId(to), result }
    }

    #[test]
    fn a_token_counts_once_it_is_durable_and_until_its_end_is() {
        let mut control = control();
        let one = Arc::new(ApiTokens::default().with(token("one"), 5));
        assert_eq!(make(&mut control, 1, "one"), [written(1, &one)]);
        let busy = Err(Refusal::Busy { limit: 1 });
        assert_eq!(make(&mut control, 2, "two"), [reply(2, busy)]);
        let made = Ok(Answer::TokenMade { name: "one".into() });
        assert_eq!(
            persisted(&mut control, 1, Outcome::Ok { revision: 1 }),
            [reply(1, made), Effect::Admit { tokens: Arc::clone(&one) }]
        );
        let taken = Err(Refusal::TokenTaken { name: "one".into() });
        assert_eq!(make(&mut control, 3, "one"), [reply(3, taken)]);
        let listed = Ok(Answer::Tokens(vec![token("one")]));
        assert_eq!(ask(&mut control, 4, Call::Tokens), [reply(4, listed)]);
        let unknown = Err(Refusal::NoToken { name: "x".into() });
        let revoke = |name: &str| Call::RevokeToken { name: name.into() };
        assert_eq!(ask(&mut control, 5, revoke("x")), [reply(5, unknown)]);
        let none = Arc::new(ApiTokens::default());
        assert_eq!(ask(&mut control, 6, revoke("one")), [written(2, &none)]);
        let revoked = Ok(Answer::TokenRevoked { name: "one".into() });
        assert_eq!(
            persisted(&mut control, 2, Outcome::Ok { revision: 2 }),
            [reply(6, revoked), Effect::Admit { tokens: none }]
        );
    }

    #[test]
    fn a_write_in_doubt_is_written_again_until_it_is_known() {
        let mut control = control();
        let one = Arc::new(ApiTokens::default().with(token("one"), 5));
        make(&mut control, 1, "one");
        let in_doubt = Err(Refusal::InDoubt);
        assert_eq!(persisted(&mut control, 1, Outcome::Unknown), [reply(1, in_doubt)]);
        let at = control.deadline().unwrap();
        control.expire(at);
        let again = effects(&mut control);
        assert!(again.contains(&written(2, &one)), "{again:?}");
        // Refused it may have been applied before: it is written until it is.
        assert_eq!(persisted(&mut control, 2, Outcome::Refused), []);
        control.expire(Time(u64::MAX / 2));
        let again = effects(&mut control);
        assert!(again.contains(&written(3, &one)), "{again:?}");
        let known = persisted(&mut control, 3, Outcome::Ok { revision: 1 });
        assert_eq!(known, [Effect::Admit { tokens: one }]);
    }

    #[test]
    fn a_refused_write_changes_nothing() {
        let mut control = control();
        make(&mut control, 1, "one");
        let refused = Err(Refusal::StoreUnavailable);
        assert_eq!(persisted(&mut control, 1, Outcome::Refused), [reply(1, refused)]);
        assert_eq!(ask(&mut control, 2, Call::Tokens), [reply(2, Ok(Answer::Tokens(Vec::new())))]);
    }
}
