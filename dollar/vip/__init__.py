"""V.I.P.: a teacher made smaller block by block, and what that cost won back by preference."""
