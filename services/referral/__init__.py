"""Referral: members bring members, and the more they bring, the more they get.

It knows who invited whom, decides alone what counts and what is owed for it, and follows each reward until it
is handed over. It refuses to know how points, cards or seats are given: it announces what is granted, and the
service that gives it answers with an event.
"""
