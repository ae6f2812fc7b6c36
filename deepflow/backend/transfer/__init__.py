"""How values get from worker to worker and to the driver, when both ends are ours.

`agreement`  what two processes tell each other of what they can do, and the proof of one memory
`serving`    the sender: what it offers for a key, and the hand-over into shared memory
`listener`   the port that streams are served on
`fetching`   the receiver: takes what is offered
`install`    puts both into a Dask worker, in place of its own gathering

A value is offered in one of three ways: as it is, by Dask's own means (small ones, and to whom the
other two cannot reach); as a descriptor of a segment in shared memory (to processes that have
proven that they see it); as a ticket for a stream (see `intermediates.stream`). A peer without
deepflow is asked, and answered, as Dask does it.
"""
