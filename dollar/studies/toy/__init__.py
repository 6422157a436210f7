"""The toy of V.I.P.'s appendix E: SFT, DPO and both on a mixture of Gaussians in the plane."""
