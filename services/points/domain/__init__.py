"""The rules, pure: `ledger` for what happens to a member, `earning` for what an order or activity gives."""
