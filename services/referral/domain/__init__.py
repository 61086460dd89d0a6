"""The rules, pure: no clock, database or messages.

`campaigns` for what was put, `profile` for what is known of a member as invitee and as inviter,
`attributions` for what follows from an invitee's facts, `ladder` for what follows from an inviter's invitees,
`rewards` for what a rung gives and where a reward stands, `fraud` for how suspicious a bond is.
"""
