"""The rules, pure: no clock, database or messages.

`coordinates` and `sites` for places, `calendar` for what is announced when, `schemes` for how groups are
formed, `seats` for groups and who may enter, `profile` for what is known of a member, `facts` for what
follows from orders.
"""
