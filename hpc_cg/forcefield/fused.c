/* Convolutions with filters on a grid of distances, pair by pair, without an array over pairs and features.

   The row of a knot holds the filter's values and then its slopes times the distance between knots, F of each. In
   interval k at part t the filter and its derivative are sums of four such rows with the Hermite weights w(t) and
   w'(t) / step. Arrays run [bead, frame, feature] and [pair, frame]; a row of -1 means a pair beyond the cutoff.
   `sent` may be one frame for all (wide = 0). Every function does the frames from `begin` to `end`; results are added
   to what is there. REAL is float or double. */

#include <stddef.h>

typedef struct {
    ptrdiff_t beads, frames, features, wide, begin, end;
    REAL inverse_step;
    const int *row;
    const REAL *part, *table;
} Work;

typedef struct {
    REAL value[4], slope[4];
} Weights;

static inline Weights hermite(REAL t, REAL inverse_step) {
    const REAL u = 1 - t;
    Weights w = {{u * u * (1 + 2 * t), t * u * u, t * t * (3 - 2 * t), -t * t * u},
                 {-6 * t * u, u * (1 - 3 * t), 6 * t * u, t * (3 * t - 2)}};
    for (int c = 0; c < 4; c++) w.slope[c] *= inverse_step;
    return w;
}

#define EACH_FEATURE _Pragma("GCC ivdep") for (ptrdiff_t f = 0; f < F; f++)
#define MIXED(w) (w[0] * T[f] + w[1] * T[F + f] + w[2] * T[2 * F + f] + w[3] * T[3 * F + f])
#define INLINE static inline __attribute__((always_inline))

/* out_i += W x_j and out_j += W x_i */
INLINE void receive_(const Work *w, const ptrdiff_t F, const REAL *sent, REAL *out) {
    const ptrdiff_t line = w->frames * F, sent_line = w->wide ? line : F;
    for (ptrdiff_t b = w->begin; b < w->end; b++) {
        const REAL *x = sent + (w->wide ? b * F : 0);
        const int *row = w->row + b;
        const REAL *part = w->part + b;
        for (ptrdiff_t i = 0; i < w->beads; i++)
            for (ptrdiff_t j = i + 1; j < w->beads; j++, row += w->frames, part += w->frames) {
                if (*row < 0) continue;
                const Weights at = hermite(*part, w->inverse_step);
                const REAL *restrict T = w->table + 2 * F * *row;
                const REAL *restrict xi = x + i * sent_line, *restrict xj = x + j * sent_line;
                REAL *restrict oi = out + i * line + b * F, *restrict oj = out + j * line + b * F;
                EACH_FEATURE {
                    const REAL W = MIXED(at.value);
                    oi[f] += W * xj[f];
                    oj[f] += W * xi[f];
                }
            }
    }
}

/* the gradient of that in x and in the table, from the gradient g in out */
INLINE void receive_back_(const Work *w, const ptrdiff_t F, const REAL *sent, const REAL *g, REAL *g_sent,
                          REAL *g_table) {
    const ptrdiff_t line = w->frames * F, sent_line = w->wide ? line : F;
    for (ptrdiff_t b = w->begin; b < w->end; b++) {
        const ptrdiff_t shift = w->wide ? b * F : 0;
        const int *row = w->row + b;
        const REAL *part = w->part + b;
        for (ptrdiff_t i = 0; i < w->beads; i++)
            for (ptrdiff_t j = i + 1; j < w->beads; j++, row += w->frames, part += w->frames) {
                if (*row < 0) continue;
                const Weights at = hermite(*part, w->inverse_step);
                const REAL *restrict T = w->table + 2 * F * *row;
                REAL *restrict gT = g_table + 2 * F * *row;
                const REAL *restrict xi = sent + i * sent_line + shift, *restrict xj = sent + j * sent_line + shift;
                REAL *restrict gxi = g_sent + i * sent_line + shift, *restrict gxj = g_sent + j * sent_line + shift;
                const REAL *restrict gi = g + i * line + b * F, *restrict gj = g + j * line + b * F;
                EACH_FEATURE {
                    const REAL W = MIXED(at.value), gW = gi[f] * xj[f] + gj[f] * xi[f];
                    gxi[f] += W * gj[f];
                    gxj[f] += W * gi[f];
                    gT[f] += at.value[0] * gW;
                    gT[F + f] += at.value[1] * gW;
                    gT[2 * F + f] += at.value[2] * gW;
                    gT[3 * F + f] += at.value[3] * gW;
                }
            }
    }
}

/* slope_ij = sum_f (p_i x_j + p_j x_i) W'; and where `out` is wanted, out_i += W p_j and out_j += W p_i */
INLINE void push_(const Work *w, const ptrdiff_t F, const REAL *sent, const REAL *pull, REAL *slope, REAL *out) {
    const ptrdiff_t line = w->frames * F, sent_line = w->wide ? line : F;
    for (ptrdiff_t b = w->begin; b < w->end; b++) {
        const REAL *x = sent + (w->wide ? b * F : 0);
        ptrdiff_t place = b;
        for (ptrdiff_t i = 0; i < w->beads; i++)
            for (ptrdiff_t j = i + 1; j < w->beads; j++, place += w->frames) {
                if (w->row[place] < 0) continue;
                const Weights at = hermite(w->part[place], w->inverse_step);
                const REAL *restrict T = w->table + 2 * F * w->row[place];
                const REAL *restrict xi = x + i * sent_line, *restrict xj = x + j * sent_line;
                const REAL *restrict pi = pull + i * line + b * F, *restrict pj = pull + j * line + b * F;
                REAL sum = 0;
                if (out) {
                    REAL *restrict oi = out + i * line + b * F, *restrict oj = out + j * line + b * F;
#pragma omp simd reduction(+ : sum)
                    for (ptrdiff_t f = 0; f < F; f++) {
                        const REAL W = MIXED(at.value);
                        sum += (pi[f] * xj[f] + pj[f] * xi[f]) * MIXED(at.slope);
                        oi[f] += W * pj[f];
                        oj[f] += W * pi[f];
                    }
                } else {
#pragma omp simd reduction(+ : sum)
                    for (ptrdiff_t f = 0; f < F; f++) sum += (pi[f] * xj[f] + pj[f] * xi[f]) * MIXED(at.slope);
                }
                slope[place] += sum;
            }
    }
}

/* the gradient of that in x, p and the table, from the gradients g_slope and, where it was wanted, g in out */
INLINE void push_back_(const Work *w, const ptrdiff_t F, const REAL *sent, const REAL *pull, const REAL *g_slope,
                       const REAL *g, REAL *g_sent, REAL *g_pull, REAL *g_table) {
    const ptrdiff_t line = w->frames * F, sent_line = w->wide ? line : F;
    for (ptrdiff_t b = w->begin; b < w->end; b++) {
        const ptrdiff_t shift = w->wide ? b * F : 0;
        ptrdiff_t place = b;
        for (ptrdiff_t i = 0; i < w->beads; i++)
            for (ptrdiff_t j = i + 1; j < w->beads; j++, place += w->frames) {
                if (w->row[place] < 0) continue;
                const Weights at = hermite(w->part[place], w->inverse_step);
                const REAL s = g_slope[place];
                const REAL *restrict T = w->table + 2 * F * w->row[place];
                REAL *restrict gT = g_table + 2 * F * w->row[place];
                const REAL *restrict xi = sent + i * sent_line + shift, *restrict xj = sent + j * sent_line + shift;
                REAL *restrict gxi = g_sent + i * sent_line + shift, *restrict gxj = g_sent + j * sent_line + shift;
                const REAL *restrict pi = pull + i * line + b * F, *restrict pj = pull + j * line + b * F;
                REAL *restrict gpi = g_pull + i * line + b * F, *restrict gpj = g_pull + j * line + b * F;
                if (g) {
                    const REAL *restrict gi = g + i * line + b * F, *restrict gj = g + j * line + b * F;
                    EACH_FEATURE {
                        const REAL W = MIXED(at.value), S = s * MIXED(at.slope);
                        const REAL gS = s * (pi[f] * xj[f] + pj[f] * xi[f]), gW = gi[f] * pj[f] + gj[f] * pi[f];
                        gxi[f] += S * pj[f];
                        gxj[f] += S * pi[f];
                        gpi[f] += S * xj[f] + W * gj[f];
                        gpj[f] += S * xi[f] + W * gi[f];
                        gT[f] += at.slope[0] * gS + at.value[0] * gW;
                        gT[F + f] += at.slope[1] * gS + at.value[1] * gW;
                        gT[2 * F + f] += at.slope[2] * gS + at.value[2] * gW;
                        gT[3 * F + f] += at.slope[3] * gS + at.value[3] * gW;
                    }
                } else {
                    EACH_FEATURE {
                        const REAL S = s * MIXED(at.slope), gS = s * (pi[f] * xj[f] + pj[f] * xi[f]);
                        gxi[f] += S * pj[f];
                        gxj[f] += S * pi[f];
                        gpi[f] += S * xj[f];
                        gpj[f] += S * xi[f];
                        gT[f] += at.slope[0] * gS;
                        gT[F + f] += at.slope[1] * gS;
                        gT[2 * F + f] += at.slope[2] * gS;
                        gT[3 * F + f] += at.slope[3] * gS;
                    }
                }
            }
    }
}

/* the usual number of features as a constant lets the compiler unroll */
#define FOR_FEATURES(call_128, call_any) \
    if (w->features == 128) call_128;    \
    else call_any

void receive(const Work *w, const REAL *sent, REAL *out) {
    FOR_FEATURES(receive_(w, 128, sent, out), receive_(w, w->features, sent, out));
}

void receive_back(const Work *w, const REAL *sent, const REAL *g, REAL *g_sent, REAL *g_table) {
    FOR_FEATURES(receive_back_(w, 128, sent, g, g_sent, g_table),
                 receive_back_(w, w->features, sent, g, g_sent, g_table));
}

void push(const Work *w, const REAL *sent, const REAL *pull, REAL *slope, REAL *out) {
    FOR_FEATURES(push_(w, 128, sent, pull, slope, out), push_(w, w->features, sent, pull, slope, out));
}

void push_back(const Work *w, const REAL *sent, const REAL *pull, const REAL *g_slope, const REAL *g, REAL *g_sent,
               REAL *g_pull, REAL *g_table) {
    FOR_FEATURES(push_back_(w, 128, sent, pull, g_slope, g, g_sent, g_pull, g_table),
                 push_back_(w, w->features, sent, pull, g_slope, g, g_sent, g_pull, g_table));
}
