/* check_paxos.h - what must always hold, judged from outside: from the disks, the messages and the true time.
 *
 * Nothing here looks into the object under test, except through the questions its users ask as well (role, lease,
 * chosen).  One checker per property of paxos.h:
 *   P1  the promise on a disk never goes down
 *   P2  per slot one value: what a majority accepted under one ballot is chosen; never two; never two values for one
 *       (slot, ballot)
 *   P3  prepare, promise, accepted and a lease grant are on the sender's disk when they leave
 *       and no ballot serves two lives of a node
 *   P4  applied in order, without gaps, once; and only what is chosen
 *   P7  who prepares was let by a majority; who leads has the promises of one
 *   P8  no acceptor promises another node while its grant lasts
 *       at any true time at most one node believes its lease
 *       who believes it, or has a confirmed round, has applied all that was acknowledged before
 *   P10 what a slot has chosen is judged by the configuration that the chosen log makes for it, by stores; nobody
 *       accepts or proposes a slot before that is settled; who proposes there has the promises of a majority of it
 *   P13 a ballot that was handed over is led and believed by nobody, and only the heir goes without votes
 *   and nothing acknowledged is ever lost. */
#pragma once
#include "tests/sim/world.h"

void check_begin(struct world *w);
void check_release(struct world *w);
/* The disks have their store ids: the first w->founders nodes are the cluster. */
void check_founded(struct world *w);
void check_start(struct world *w, uint16_t node);
/* A transaction is durable now. */
void check_durable(struct world *w, uint16_t node, const struct disk_write *t);
/* A packet leaves. */
void check_emit(struct world *w, uint16_t from, uint16_t to, const struct packet *p);
/* A node is about to take in this message. */
void check_heard(struct world *w, uint16_t node, const struct paxos_msg *m);
/* The node has handed over what it led under that ballot, whether or not anybody was told. */
void check_handed_over(struct world *w, struct ballot b);
/* The work of one take: promises given, entries handed out. */
void check_promises(struct world *w, uint16_t node, const struct paxos_output *out);
void check_applies(struct world *w, uint16_t node, const struct paxos_output *out);
/* Where applies are not seen: the node says it has applied everything up to here. */
void check_applied_is(struct world *w, uint16_t node, paxos_slot slot);
/* ... and what it sends now was made knowing the log up to here. */
void check_told(struct world *w, uint16_t node, paxos_slot slot);
/* With everything up to `slot` applied this node takes that for the membership. */
void check_members(struct world *w, uint16_t node, paxos_slot slot, const struct members *m);
/* A snapshot took the place of the log up to `slot`. */
void check_installed(struct world *w, uint16_t node, paxos_slot slot, const struct members *members);
/* As the chosen log says: the newest membership; how far the log is chosen without a gap; does it name this node's
 * store; can the cluster work without this node; is it a voter that is there. */
/* Did that store (0: nobody) sit there in the newest membership of `since` or of a later slot? */
bool check_sat(const struct world *w, paxos_slot since, uint16_t seat, uint64_t store_id);
const struct membership *check_newest(const struct world *w);
paxos_slot check_prefix(const struct world *w);
bool check_member(const struct world *w, uint16_t node);
bool check_can_spare(const struct world *w, uint16_t node);
bool check_can_lead(const struct world *w, uint16_t node);
/* The end of a turn. */
void check_turn(struct world *w, uint16_t node);
/* The store is read for a peer: slot `slot` as chosen. */
void check_fetched(struct world *w, uint16_t node, paxos_slot slot, const struct disk_entry *e);
/* What was chosen in that slot, from any disk; false: it is on none any more. */
bool check_chosen(struct world *w, paxos_slot slot, struct slice *ret_value);
/* How many slots were used, and for how many different values were in play: without those P2 is hardly tried. */
void check_conflicts(struct world *w, uint64_t *ret_slots, uint64_t *ret_rivals);
/* A client was told that this slot's command is done. */
void check_acknowledged(struct world *w, uint16_t node, paxos_slot slot);
/* The highest slot that any client was told of. */
paxos_slot check_acknowledged_max(const struct world *w);
/* A read is answered by this node for a question asked when `before` was acknowledged at most. */
void check_read(struct world *w, uint16_t node, paxos_slot before, const char *by);
/* Everything acknowledged is in every node. */
void check_end(struct world *w);
paxos_slot check_applied(const struct world *w, uint16_t node);
