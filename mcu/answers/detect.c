/* What detect() needs to know of its two maps of height x width cells, int8 and row by row. */
typedef struct {
    int32_t height, width, classes;
    int32_t stride;     /* pixels between two cells */
    int32_t most;       /* boxes at the most */
    int32_t threshold;  /* least score of a box */
    int32_t overlap;    /* in 1/256: of two boxes of a class with more of it, the lower score goes */
    int32_t zero_point; /* of the box map */
    int32_t step;       /* one integer of the box map in 1/16 of a pixel, times 2^16 */
} detect_shape;

enum { DETECT_KIND, DETECT_SCORE, DETECT_X0, DETECT_Y0, DETECT_X1, DETECT_Y1, DETECT_VALUES };

/* Whether a score is larger than its neighbours before it, and not smaller than those behind. */
static int detect_is_peak(const int8_t *centre, const detect_shape *s, int32_t row, int32_t column, int32_t kind)
{
    const int8_t score = centre[(row * s->width + column) * s->classes + kind];
    for (int32_t y = row - 1; y <= row + 1; y++)
        for (int32_t x = column - 1; x <= column + 1; x++) {
            if (y < 0 || y >= s->height || x < 0 || x >= s->width)
                continue;
            const int8_t other = centre[(y * s->width + x) * s->classes + kind];
            const int before = y < row || (y == row && x < column);
            if (other > score || (before && other == score))
                return 0;
        }
    return 1;
}

/* Puts a peak behind those of its score or a higher one, of which there are `count`; returns how many there are then. */
static int32_t detect_insert(int32_t *answer, int32_t count, int32_t most, int32_t kind, int32_t score, int32_t cell)
{
    int32_t place = count;
    while (place > 0 && answer[(place - 1) * DETECT_VALUES + DETECT_SCORE] < score)
        place--;
    if (place == most)
        return count;
    count += count < most;
    for (int32_t i = count - 1; i > place; i--)
        for (int32_t v = 0; v <= DETECT_X0; v++)
            answer[i * DETECT_VALUES + v] = answer[(i - 1) * DETECT_VALUES + v];
    answer[place * DETECT_VALUES + DETECT_KIND] = kind;
    answer[place * DETECT_VALUES + DETECT_SCORE] = score;
    answer[place * DETECT_VALUES + DETECT_X0] = cell; /* until its box is known */
    return count;
}

/* A corner's coordinate: from the middle of cell `index` by a distance, not beyond the border. */
static int32_t detect_corner(const detect_shape *s, int32_t index, int8_t code, int32_t sign, int32_t cells)
{
    const int32_t steps = code > s->zero_point ? code - s->zero_point : 0;
    const int32_t distance = (int32_t)(((uint32_t)steps * (uint32_t)s->step + (1u << 15)) >> 16);
    const int32_t found = (2 * index + 1) * s->stride * 8 + sign * distance, border = cells * s->stride * 16;
    return found < 0 ? 0 : found > border ? border : found;
}

static int64_t detect_area(const int32_t *box)
{
    return (int64_t)(box[DETECT_X1] - box[DETECT_X0]) * (box[DETECT_Y1] - box[DETECT_Y0]);
}

static int detect_overlap(const detect_shape *s, const int32_t *a, const int32_t *b)
{
    const int32_t x0 = a[DETECT_X0] > b[DETECT_X0] ? a[DETECT_X0] : b[DETECT_X0];
    const int32_t y0 = a[DETECT_Y0] > b[DETECT_Y0] ? a[DETECT_Y0] : b[DETECT_Y0];
    const int32_t x1 = a[DETECT_X1] < b[DETECT_X1] ? a[DETECT_X1] : b[DETECT_X1];
    const int32_t y1 = a[DETECT_Y1] < b[DETECT_Y1] ? a[DETECT_Y1] : b[DETECT_Y1];
    if (x0 >= x1 || y0 >= y1)
        return 0;
    const int64_t both = (int64_t)(x1 - x0) * (y1 - y0);
    return both * 256 > s->overlap * (detect_area(a) + detect_area(b) - both);
}

/* The boxes of a centre map [height, width, classes] and a box map [height, width, 4] of distances to left, top, right
   and bottom: `most` times class, score, x0, y0, x1, y1 in 1/16 of a pixel, highest score first; class -1 where there
   are fewer. atalaia/tasks/peaks.py says which they are. */
static void detect(const int8_t *centre, const int8_t *box, const detect_shape *s, int32_t *answer)
{
    int32_t count = 0, kept = 0;
    for (int32_t row = 0; row < s->height; row++)
        for (int32_t column = 0; column < s->width; column++)
            for (int32_t kind = 0; kind < s->classes; kind++) {
                const int32_t cell = row * s->width + column, score = centre[cell * s->classes + kind];
                if (score >= s->threshold && detect_is_peak(centre, s, row, column, kind))
                    count = detect_insert(answer, count, s->most, kind, score, cell);
            }
    for (int32_t i = 0; i < count; i++) {
        const int32_t *found = answer + i * DETECT_VALUES;
        const int32_t cell = found[DETECT_X0], row = cell / s->width, column = cell % s->width;
        const int8_t *distances = box + cell * 4;
        const int32_t one[DETECT_VALUES] = {
            found[DETECT_KIND],
            found[DETECT_SCORE],
            detect_corner(s, column, distances[0], -1, s->width),
            detect_corner(s, row, distances[1], -1, s->height),
            detect_corner(s, column, distances[2], 1, s->width),
            detect_corner(s, row, distances[3], 1, s->height),
        };
        int good = 1;
        for (int32_t j = 0; j < kept && good; j++)
            good = answer[j * DETECT_VALUES] != one[DETECT_KIND] || !detect_overlap(s, answer + j * DETECT_VALUES, one);
        for (int32_t v = 0; v < DETECT_VALUES && good; v++)
            answer[kept * DETECT_VALUES + v] = one[v];
        kept += good;
    }
    for (int32_t i = kept * DETECT_VALUES; i < s->most * DETECT_VALUES; i++)
        answer[i] = i % DETECT_VALUES == DETECT_KIND ? -1 : 0;
}
