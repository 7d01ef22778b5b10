//! Who a message is for: one expression, one evaluator.
//!
//! The same [`Audience`] is evaluated over bitmaps at a front and over one registration by the middle's judgement; both
//! implement [`Evaluate`], so they can't disagree about what an operator means.

mod comparison;
mod grammar;

use thiserror::Error;

pub use self::comparison::{
    ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTE_VALUE_BYTES_MAX, Comparison, InvalidComparison, Test, VALUES_MAX,
};
pub use self::grammar::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX, InvalidExpression};
use crate::contract::message as wire;
use crate::ids::{Alias, InvalidId, TopicName, UserAccount};

/// Most steps of one expression.
pub const STEPS_MAX: usize = 64;

/// An expression over the registrations of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Every registration of the app.
    Everyone,
    /// Those subscribed to the topic.
    Topic(TopicName),
    /// Those that have the alias.
    Alias(Alias),
    /// Those that have the user account.
    UserAccount(UserAccount),
    /// Those for whose attribute it holds.
    Attribute(Comparison),
    /// Those in both.
    And(Box<Self>, Box<Self>),
    /// Those in either.
    Or(Box<Self>, Box<Self>),
    /// Those of the app that are not in it.
    Not(Box<Self>),
}

/// Why an expression from the wire is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidAudience {
    /// More than [`STEPS_MAX`] steps.
    #[error("an audience has {0} steps; at most 64 are allowed")]
    TooLong(usize),
    /// An operator that this build does not know.
    #[error("step {step} of the audience has the unknown operator {op}")]
    UnknownOp {
        /// Which step, from 0.
        step: usize,
        /// Its number.
        op: i32,
    },
    /// An operator without its operands, or operands without an operator.
    #[error("the audience does not reduce to one set at step {0}")]
    Unbalanced(usize),
    /// A step whose topic, alias or user account is not valid.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A step whose comparison is not valid.
    #[error(transparent)]
    Comparison(#[from] InvalidComparison),
}

/// What an audience is evaluated over.
pub trait Evaluate {
    /// A set of registrations: a bitmap at a front, a `bool` for one registration.
    type Set;

    /// All registrations of the app.
    fn everyone(&self) -> Self::Set;
    /// Those subscribed to the topic.
    fn topic(&self, topic: &TopicName) -> Self::Set;
    /// Those that have the alias.
    fn alias(&self, alias: &Alias) -> Self::Set;
    /// Those that have the user account.
    fn user_account(&self, user_account: &UserAccount) -> Self::Set;
    /// Those whose attribute is there and holds.
    fn attribute(&self, comparison: &Comparison) -> Self::Set;
    /// Intersection.
    fn and(&self, a: Self::Set, b: Self::Set) -> Self::Set;
    /// Union.
    fn or(&self, a: Self::Set, b: Self::Set) -> Self::Set;
    /// Complement within the app.
    fn not(&self, a: Self::Set) -> Self::Set;
}

impl Audience {
    /// `self` and `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::And(Box::new(self), Box::new(other))
    }

    /// `self` or `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::Or(Box::new(self), Box::new(other))
    }

    /// The complement.
    #[expect(clippy::should_implement_trait, reason = "reads as the operator of the expression, beside `and` and `or`")]
    #[must_use]
    pub fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    /// Evaluates the expression.
    pub fn evaluate<E: Evaluate>(&self, over: &E) -> E::Set {
        match self {
            Self::Everyone => over.everyone(),
            Self::Topic(topic) => over.topic(topic),
            Self::Alias(alias) => over.alias(alias),
            Self::UserAccount(user_account) => over.user_account(user_account),
            Self::Attribute(comparison) => over.attribute(comparison),
            Self::And(a, b) => over.and(a.evaluate(over), b.evaluate(over)),
            Self::Or(a, b) => over.or(a.evaluate(over), b.evaluate(over)),
            Self::Not(a) => over.not(a.evaluate(over)),
        }
    }

    /// How many steps the expression has in postfix order.
    pub fn steps(&self) -> usize {
        match self {
            Self::Everyone | Self::Topic(_) | Self::Alias(_) | Self::UserAccount(_) | Self::Attribute(_) => 1,
            Self::And(a, b) | Self::Or(a, b) => 1 + a.steps() + b.steps(),
            Self::Not(a) => 1 + a.steps(),
        }
    }

    /// As it travels: a program in postfix order.
    pub fn to_wire(&self) -> wire::Audience {
        fn push(audience: &Audience, ops: &mut Vec<wire::AudienceOp>) {
            let step = |op, name: Option<&str>| wire::AudienceOp {
                op,
                name: name.map(str::to_owned),
                comparison: None,
                values: None,
            };
            let made = match audience {
                Audience::Everyone => step(1, None),
                Audience::Topic(topic) => step(2, Some(topic.as_str())),
                Audience::And(a, b) => {
                    push(a, ops);
                    push(b, ops);
                    step(3, None)
                }
                Audience::Or(a, b) => {
                    push(a, ops);
                    push(b, ops);
                    step(4, None)
                }
                Audience::Not(a) => {
                    push(a, ops);
                    step(5, None)
                }
                Audience::Alias(alias) => step(6, Some(alias.as_str())),
                Audience::UserAccount(user_account) => step(7, Some(user_account.as_str())),
                Audience::Attribute(comparison) => comparison.to_wire(8),
            };
            ops.push(made);
        }
        let mut ops = Vec::with_capacity(self.steps());
        push(self, &mut ops);
        wire::Audience { ops }
    }
}

impl TryFrom<&wire::Audience> for Audience {
    type Error = InvalidAudience;

    fn try_from(wire: &wire::Audience) -> Result<Self, InvalidAudience> {
        if wire.ops.len() > STEPS_MAX {
            return Err(InvalidAudience::TooLong(wire.ops.len()));
        }
        let mut stack: Vec<Self> = Vec::new();
        for (step, op) in wire.ops.iter().enumerate() {
            let mut pop = || stack.pop().ok_or(InvalidAudience::Unbalanced(step));
            let made = match op.op {
                1 => Self::Everyone,
                2 => Self::Topic(op.name.as_deref().unwrap_or_default().parse()?),
                3 => {
                    let b = pop()?;
                    pop()?.and(b)
                }
                4 => {
                    let b = pop()?;
                    pop()?.or(b)
                }
                5 => pop()?.not(),
                6 => Self::Alias(op.name.as_deref().unwrap_or_default().parse()?),
                7 => Self::UserAccount(op.name.as_deref().unwrap_or_default().parse()?),
                8 => Self::Attribute(Comparison::try_from(op)?),
                op => return Err(InvalidAudience::UnknownOp { step, op }),
            };
            stack.push(made);
        }
        let whole = stack.pop().ok_or(InvalidAudience::Unbalanced(0))?;
        if stack.is_empty() { Ok(whole) } else { Err(InvalidAudience::Unbalanced(wire.ops.len())) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// One registration's topics.
    struct One<'a>(&'a BTreeSet<TopicName>);

    impl Evaluate for One<'_> {
        type Set = bool;

        fn everyone(&self) -> bool {
            true
        }
        fn topic(&self, topic: &TopicName) -> bool {
            self.0.contains(topic)
        }
        fn alias(&self, alias: &Alias) -> bool {
            alias.as_str() == "a"
        }
        fn user_account(&self, user_account: &UserAccount) -> bool {
            user_account.as_str() == "a"
        }
        fn attribute(&self, comparison: &Comparison) -> bool {
            comparison.attribute() == "platform" && comparison.holds("android")
        }
        fn and(&self, a: bool, b: bool) -> bool {
            a && b
        }
        fn or(&self, a: bool, b: bool) -> bool {
            a || b
        }
        fn not(&self, a: bool) -> bool {
            !a
        }
    }

    fn topic(name: &str) -> Audience {
        Audience::Topic(name.parse().expect("a topic"))
    }

    fn expressions() -> impl Strategy<Value = Audience> {
        let leaf = prop_oneof![
            Just(Audience::Everyone),
            "[a-d]".prop_map(|name| topic(&name)),
            "[a-d]".prop_map(|name| Audience::Alias(name.parse().expect("an alias"))),
            "[a-d]".prop_map(|name| Audience::UserAccount(name.parse().expect("a user account"))),
            ("[a-d]", "[a-d]").prop_map(|(name, value)| {
                Audience::Attribute(Comparison::new(&name, Test::Less(value)).expect("a comparison"))
            }),
            ("[a-d]", proptest::collection::vec("[a-d]", 1..3)).prop_map(|(name, values)| {
                Audience::Attribute(Comparison::new(&name, Test::In(values)).expect("a comparison"))
            }),
        ];
        leaf.prop_recursive(4, 24, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
                inner.prop_map(Audience::not),
            ]
        })
    }

    #[test]
    fn operators_mean_what_they_say() {
        let has: BTreeSet<TopicName> = ["a".parse().expect("a topic")].into();
        let one = One(&has);
        assert!(topic("a").or(topic("b")).evaluate(&one));
        assert!(!topic("a").and(topic("b")).evaluate(&one));
        assert!(topic("a").and(topic("b").not()).evaluate(&one));
        assert!(Audience::Everyone.evaluate(&one));
    }

    #[test]
    fn a_program_that_is_no_expression_is_refused() {
        let op = |op| wire::AudienceOp { op, name: None, comparison: None, values: None };
        let parse = |ops| Audience::try_from(&wire::Audience { ops });
        assert_eq!(parse(vec![]), Err(InvalidAudience::Unbalanced(0)));
        assert_eq!(parse(vec![op(1), op(3)]), Err(InvalidAudience::Unbalanced(1)));
        assert_eq!(parse(vec![op(1), op(1)]), Err(InvalidAudience::Unbalanced(2)));
        assert_eq!(parse(vec![op(9)]), Err(InvalidAudience::UnknownOp { step: 0, op: 9 }));
        assert_eq!(parse(vec![op(1); 65]), Err(InvalidAudience::TooLong(65)));
        assert!(matches!(parse(vec![op(2)]), Err(InvalidAudience::Name(_))));
    }

    proptest! {
        #[test]
        fn an_expression_survives_the_wire(expression in expressions()) {
            prop_assume!(expression.steps() <= STEPS_MAX);
            prop_assert_eq!(Audience::try_from(&expression.to_wire()), Ok(expression));
        }
    }
}
