//! Orders: what one holds, what is accepted, and which state changes are legal.
//!
//! Pure: no clock, no storage, no HTTP. The types are also the JSON the interface speaks.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most items in one order.
pub const MAX_ITEMS: usize = 100;
/// Most pieces of one item.
pub const MAX_QUANTITY: u32 = 10_000;
/// Highest price of one piece, in minor units. With the two bounds above the highest total is 10^15,
/// which every JSON reader keeps exactly (below 2^53).
pub const MAX_UNIT_PRICE_MINOR: i64 = 1_000_000_000;
/// Longest customer name, in characters.
pub const MAX_CUSTOMER: usize = 128;
/// Longest stock-keeping unit, in characters.
pub const MAX_SKU: usize = 64;
/// Longest note, in characters.
pub const MAX_NOTE: usize = 500;

/// Names one order: a version 7 UUID, so that ids made later sort later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(Uuid);

impl OrderId {
    /// An id nobody has.
    pub fn random() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses the hyphenated form; the other spellings of a UUID are refused, so that an order has one URL.
    ///
    /// # Errors
    /// When `text` is not a hyphenated UUID.
    pub fn parse(text: &str) -> Result<Self, InvalidOrder> {
        match Uuid::parse_str(text) {
            Ok(id) if text.len() == 36 => Ok(Self(id)),
            _ => Err(InvalidOrder::new("id", "must be a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057")),
        }
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Placed, not paid.
    Pending,
    /// Paid.
    Confirmed,
    /// On its way.
    Shipped,
    /// Handed over; final.
    Delivered,
    /// Given up before shipping; final.
    Cancelled,
}

impl Status {
    /// Every status, in the order of an order's life.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Confirmed, Self::Shipped, Self::Delivered, Self::Cancelled];

    /// The word used in JSON and in storage.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Cancelled => "cancelled",
        }
    }

    /// The reverse of [`Status::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// What may come next.
    pub fn successors(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Confirmed, Self::Cancelled],
            Self::Confirmed => &[Self::Shipped, Self::Cancelled],
            Self::Shipped => &[Self::Delivered],
            Self::Delivered | Self::Cancelled => &[],
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the new status when the change is legal.
///
/// # Errors
/// When `to` is not one of the successors of `from`; staying in a status is no change and refused too.
pub fn transition(from: Status, to: Status) -> Result<Status, Refusal> {
    if from.successors().contains(&to) { Ok(to) } else { Err(Refusal::IllegalTransition { from, to }) }
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Stock-keeping unit, 1 to [`MAX_SKU`] characters.
    pub sku: String,
    /// Pieces, 1 to [`MAX_QUANTITY`].
    pub quantity: u32,
    /// Price of one piece in minor units of the order's currency (cents), 0 to [`MAX_UNIT_PRICE_MINOR`].
    pub unit_price_minor: i64,
}

/// What a customer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// Who orders, 1 to [`MAX_CUSTOMER`] characters.
    pub customer: String,
    /// Three capital letters (ISO 4217).
    pub currency: String,
    /// 1 to [`MAX_ITEMS`] lines.
    pub items: Vec<Item>,
    /// Free text, at most [`MAX_NOTE`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A change to an order; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderUpdate {
    /// The status to move to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// A new note, at most [`MAX_NOTE`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Only change the order if it still has this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub id: OrderId,
    /// Where it stands.
    pub status: Status,
    /// Who ordered.
    pub customer: String,
    /// Three capital letters (ISO 4217).
    pub currency: String,
    /// What was ordered.
    pub items: Vec<Item>,
    /// Sum of quantity times price, in minor units of `currency`.
    pub total_minor: i64,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// 1 at first, one more with each change.
    pub version: i64,
    /// When it was placed, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub updated_at_ms: i64,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPage {
    /// Newest first.
    pub orders: Vec<Order>,
    /// Where the next page starts; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Why what was sent is no order or no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidOrder {
    /// Path of the field, such as `items[0].sku`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl InvalidOrder {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Why a well-formed change does not fit the order it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The status may not follow the current one.
    IllegalTransition {
        /// Current status.
        from: Status,
        /// Status asked for.
        to: Status,
    },
    /// The order has changed since the caller read it.
    VersionConflict {
        /// Current version.
        current: i64,
    },
}

impl NewOrder {
    /// Makes the order, pending, with version 1. `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The first field out of bounds.
    pub fn place(self, id: OrderId, now_ms: i64) -> Result<Order, InvalidOrder> {
        check_text("customer", &self.customer, MAX_CUSTOMER)?;
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidOrder::new("currency", "must be three capital letters such as EUR"));
        }
        check_note(self.note.as_deref())?;
        if self.items.is_empty() || self.items.len() > MAX_ITEMS {
            return Err(InvalidOrder::new("items", format!("must hold 1 to {MAX_ITEMS} items")));
        }
        let mut total_minor = 0;
        for (index, item) in self.items.iter().enumerate() {
            total_minor += item_total(index, item)?;
        }
        Ok(Order {
            id,
            status: Status::Pending,
            customer: self.customer,
            currency: self.currency,
            items: self.items,
            total_minor,
            note: self.note,
            version: 1,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        })
    }
}

impl OrderUpdate {
    /// Checks what can be checked without the order.
    ///
    /// # Errors
    /// When nothing would change or the note is too long.
    pub fn check(&self) -> Result<(), InvalidOrder> {
        if self.status.is_none() && self.note.is_none() {
            return Err(InvalidOrder::new("status", "or note must be given: the update changes nothing"));
        }
        check_note(self.note.as_deref())
    }
}

impl Order {
    /// The order after `update`. `now_ms` is milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// When the state change is illegal or the caller's version is not the current one.
    pub fn updated(mut self, update: &OrderUpdate, now_ms: i64) -> Result<Self, Refusal> {
        if update.version.is_some_and(|version| version != self.version) {
            return Err(Refusal::VersionConflict { current: self.version });
        }
        if let Some(to) = update.status {
            self.status = transition(self.status, to)?;
        }
        if let Some(note) = &update.note {
            self.note = Some(note.clone());
        }
        self.version += 1;
        // A clock set back must not make an order change before it was placed.
        self.updated_at_ms = now_ms.max(self.updated_at_ms);
        Ok(self)
    }
}

fn item_total(index: usize, item: &Item) -> Result<i64, InvalidOrder> {
    check_text(&format!("items[{index}].sku"), &item.sku, MAX_SKU)?;
    if item.quantity == 0 || item.quantity > MAX_QUANTITY {
        let field = format!("items[{index}].quantity");
        return Err(InvalidOrder::new(field, format!("must be 1 to {MAX_QUANTITY}")));
    }
    if !(0..=MAX_UNIT_PRICE_MINOR).contains(&item.unit_price_minor) {
        let field = format!("items[{index}].unit_price_minor");
        return Err(InvalidOrder::new(field, format!("must be 0 to {MAX_UNIT_PRICE_MINOR}")));
    }
    Ok(i64::from(item.quantity) * item.unit_price_minor)
}

fn check_note(note: Option<&str>) -> Result<(), InvalidOrder> {
    match note {
        Some(note) if note.chars().count() > MAX_NOTE => {
            Err(InvalidOrder::new("note", format!("must have at most {MAX_NOTE} characters")))
        }
        _ => Ok(()),
    }
}

fn check_text(field: &str, text: &str, max: usize) -> Result<(), InvalidOrder> {
    let length = text.chars().count();
    if length == 0 || length > max || text.chars().any(char::is_control) {
        let problem = format!("must have 1 to {max} characters and no control characters");
        return Err(InvalidOrder::new(field, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_order() -> NewOrder {
        let item = |sku: &str, quantity, price| Item { sku: sku.into(), quantity, unit_price_minor: price };
        NewOrder {
            customer: "ada".into(),
            currency: "EUR".into(),
            items: vec![item("tea", 2, 350), item("cup", 1, 1299)],
            note: None,
        }
    }

    #[test]
    fn every_state_change_is_legal_or_refused_as_the_table_says() {
        let legal = [
            (Status::Pending, Status::Confirmed),
            (Status::Pending, Status::Cancelled),
            (Status::Confirmed, Status::Shipped),
            (Status::Confirmed, Status::Cancelled),
            (Status::Shipped, Status::Delivered),
        ];
        for from in Status::ALL {
            for to in Status::ALL {
                let expected = if legal.contains(&(from, to)) {
                    Ok(to)
                } else {
                    Err(Refusal::IllegalTransition { from, to })
                };
                assert_eq!(transition(from, to), expected, "{from} -> {to}");
            }
        }
    }

    #[test]
    fn the_words_of_json_and_storage_are_the_same() {
        for status in Status::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("lost"), None);
    }

    #[test]
    fn total_is_the_sum_of_the_lines_and_cannot_overflow() {
        assert_eq!(new_order().place(OrderId::random(), 7).unwrap().total_minor, 1999);
        let most = Item { sku: "x".into(), quantity: MAX_QUANTITY, unit_price_minor: MAX_UNIT_PRICE_MINOR };
        let order = NewOrder { items: vec![most; MAX_ITEMS], ..new_order() };
        assert_eq!(order.place(OrderId::random(), 7).unwrap().total_minor, 1_000_000_000_000_000);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let refused = |change: fn(&mut NewOrder)| {
            let mut order = new_order();
            change(&mut order);
            order.place(OrderId::random(), 7).unwrap_err().field
        };
        assert_eq!(refused(|o| o.customer.clear()), "customer");
        assert_eq!(refused(|o| o.customer = "a\nb".into()), "customer");
        assert_eq!(refused(|o| o.currency = "eur".into()), "currency");
        assert_eq!(refused(|o| o.items.clear()), "items");
        assert_eq!(refused(|o| o.items = vec![o.items[0].clone(); MAX_ITEMS + 1]), "items");
        assert_eq!(refused(|o| o.items[1].quantity = 0), "items[1].quantity");
        assert_eq!(refused(|o| o.items[1].quantity = MAX_QUANTITY + 1), "items[1].quantity");
        assert_eq!(refused(|o| o.items[0].unit_price_minor = -1), "items[0].unit_price_minor");
        assert_eq!(refused(|o| o.items[0].sku = "s".repeat(MAX_SKU + 1)), "items[0].sku");
        assert_eq!(refused(|o| o.note = Some("n".repeat(MAX_NOTE + 1))), "note");
        assert_eq!(OrderUpdate::default().check().unwrap_err().field, "status");
    }

    #[test]
    fn an_update_changes_what_it_names_and_checks_the_version() {
        let order = new_order().place(OrderId::random(), 7).unwrap();
        let note = OrderUpdate { note: Some("gift".into()), version: Some(1), ..OrderUpdate::default() };
        let noted = order.updated(&note, 9).unwrap();
        assert_eq!((noted.status, noted.version, noted.updated_at_ms), (Status::Pending, 2, 9));
        assert_eq!(noted.clone().updated(&note, 9), Err(Refusal::VersionConflict { current: 2 }));
        let earlier =
            noted.updated(&OrderUpdate { status: Some(Status::Confirmed), ..OrderUpdate::default() }, 3);
        assert_eq!(earlier.unwrap().updated_at_ms, 9);
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = OrderId::random();
        assert_eq!(OrderId::parse(&id.to_string()), Ok(id));
        for bad in ["", "7", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}"] {
            assert!(OrderId::parse(bad).is_err(), "{bad}");
        }
    }
}
