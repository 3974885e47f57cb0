/* Where two cores wait for each other: each counts how often it was here, and what it wrote before is there for the other.
 * A core that does the work of both meets nobody. */
enum { BOTH_CORES = 2 };

static void meet(model_meeting_t *meeting, int core)
{
    if (core == BOTH_CORES)
        return;
    const uint32_t here = meeting->at[core] + 1;
    __atomic_store_n(&meeting->at[core], here, __ATOMIC_RELEASE);
    while ((int32_t)(__atomic_load_n(&meeting->at[1 - core], __ATOMIC_ACQUIRE) - here) < 0) {
    }
}
