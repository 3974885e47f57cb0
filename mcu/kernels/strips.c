/* Steps that run together, row by row. Of a map that only they read, memory holds the rows that are still needed, the oldest
 * first. A row is as its readers want it, with zero points around it; so are whole rows above and below the map. */
typedef struct {
    uint16_t kernel;
    uint8_t step, stride, pad; /* step: whose rows they are, as a number in the strip */
} strip_read_t;

typedef struct {
    uint32_t at, pitch;  /* bytes: to the rows in the arena, and from row to row */
    uint16_t room, drop; /* rows that fit; rows that go at once where none is free */
    uint16_t rows, end;  /* rows of the map; and with those below it */
    uint8_t above, zero; /* rows above; what padding is made of */
    uint8_t padded;      /* whether there is any */
    uint8_t reads;
    strip_read_t read[2];
} strip_t;

typedef struct {
    int16_t next, first; /* the row to make next, and the first one in memory */
} strip_state_t;

static void strips_start(const strip_t *s, strip_state_t *state, int steps, uint8_t *arena)
{
    for (; steps--; s++, state++) {
        state->next = 0, state->first = (int16_t)-s->above;
        if (s->padded)
            memset(arena + s->at, s->zero, s->room * s->pitch);
    }
}

/* The step whose turn it is: the last one, or else the one that makes a row that it lacks, and so on. */
static int strips_turn(const strip_t *s, const strip_state_t *state, int last)
{
    for (int i = last, lacking = last;; i = lacking) {
        const int y = state[i].next;
        for (int k = 0; k < s[i].reads && y < s[i].rows && lacking == i; k++) {
            const strip_read_t *r = &s[i].read[k];
            const int wanted = y * r->stride - r->pad + r->kernel, end = s[r->step].end;
            if (state[r->step].next < (wanted < end ? wanted : end))
                lacking = r->step;
        }
        if (lacking == i)
            return i;
    }
}

/* Where a step's next row goes. */
static uint8_t *strips_to(const strip_t *s, strip_state_t *state, uint8_t *arena)
{
    uint8_t *const rows = arena + s->at;
    if (state->next - state->first == s->room) {
        move_down(rows, rows + s->drop * s->pitch, (uint32_t)(s->room - s->drop) * s->pitch);
        state->first = (int16_t)(state->first + s->drop);
    }
    return rows + (uint32_t)(state->next - state->first) * s->pitch;
}

/* Where a row of a step lies. */
static const uint8_t *strips_from(const strip_t *s, const strip_state_t *state, const uint8_t *arena, int row)
{
    return arena + s->at + (uint32_t)(row - state->first) * s->pitch;
}
