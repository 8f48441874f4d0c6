/* Langevin dynamics of many replicas of one bead system: priors, network and BAOAB in one pass, in single precision.

   A thread takes a tile of replicas and makes all steps of a call with it, so that its state and activations stay in
   the core's caches and threads never wait for one another. A filter W(d) and its slope come from cubic B-splines on
   equal intervals up to the cutoff,

       W(d) = sum_m w_m(t) c[row + m],    dW/dd = sum_m w'_m(t) c[row + m],    m = 0..3,  d = h (row + t),

   layers are products of the rows of a tile (replica by replica, bead by bead) with packed weights, and the network
   is walked back by hand, as in hpc_cg/forcefield/schnet.py. Normal numbers are a function of (key, replica, step,
   bead): Philox 4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405) and Box-Muller.

   Every number of a replica is made by the same operations in the same order whatever else is in the tile, so its
   trajectory depends neither on its companions nor on the number of threads. Comparisons are written such that no
   numbers stay no numbers: those replicas are found at the next saved frame.

   Units nm, ps, u, kJ/mol. Widths are padded with zeros to multiples of PAD by the caller. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define PAD 32       /* widths of layers are multiples of this */
#define MAX_LAYERS 8 /* blocks, and hidden layers of the readout */

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES) /* columns that a register tile holds */
_Static_assert(PAD % PANEL == 0, "layers are made of whole panels");

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec all(float x) { return x - (vec){0}; }

/* the lesser of two; what is no number stays none */
static inline vec at_most(vec x, vec most) {
  return (vec)(((ivec)(x > most) & (ivec)most) | (~(ivec)(x > most) & (ivec)x));
}

static inline float sum(vec v) {
  float total = 0.0f;
  for (int lane = 0; lane < LANES / 2; lane++) total += v[lane] + v[lane + LANES / 2];
  return total;
}

/* ---- what is simulated ---- */

typedef struct {
  int in, out;          /* padded widths */
  int rows;             /* rows of the constant: 1, or one per bead */
  float *constant;      /* rows x out */
  float *weight, *back; /* packed, in x out; and its transpose, out x in */
} Layer;

typedef struct {
  int n_bonds, n_angles, n_impropers, n_torsions, order;
  int *bond, *angle, *improper, *torsion; /* beads, place by place: all firsts, all seconds ... */
  float *bond_k, *bond_0, *angle_k, *angle_0, *improper_k, *improper_0, *sine, *cosine;
} Priors;

typedef struct {
  int n, padded, width, n_blocks, n_knots, n_hidden;
  float cutoff;
  float *table;               /* (knot + 3) x (block, feature) */
  float *opening;             /* what each bead sends in the first block: bead x feature */
  float *last;                /* from the last hidden layer to the energy */
  float *repulsion;           /* eps sigma^6 of each two beads: bead x padded */
  float *steepest;            /* 1 / r where their repulsion goes on as its tangent, 0 without any: bead x padded */
  float *self;                /* 1 where a row meets itself or padding: bead x padded */
  Layer lift[MAX_LAYERS], mix[MAX_LAYERS], hidden[MAX_LAYERS];
  Priors prior;
  int has_repulsion;
} Engine;

typedef struct {
  int inertia;                /* or overdamped: only positions move */
  float drift, decay;         /* dt/2, exp(-friction dt); without inertia not used */
  const float *kick, *spread; /* per bead: dt/2m and the noise of a velocity; without inertia dt/(m friction) and that of
                                 a position */
  uint32_t key[2];
} Dynamics;

/* ---- products of matrices ---- */

#define ROWS_1(X) X(0)
#define ROWS_2(X) ROWS_1(X) X(1)
#define ROWS_3(X) ROWS_2(X) X(2)
#define ROWS_4(X) ROWS_3(X) X(3)
#define ROWS_5(X) ROWS_4(X) X(4)
#define ROWS_6(X) ROWS_5(X) X(5)
#define ROWS_7(X) ROWS_6(X) X(6)
#define ROWS_8(X) ROWS_7(X) X(7)
#define ROWS_9(X) ROWS_8(X) X(8)
#define ROWS_10(X) ROWS_9(X) X(9)
#define ROWS_11(X) ROWS_10(X) X(10)
#define ROWS_12(X) ROWS_11(X) X(11)
#define ROWS_13(X) ROWS_12(X) X(12)
#define ROWS_14(X) ROWS_13(X) X(13)

/* out[r] = start[r] + a[r] w for the rows of one register tile: two vectors of columns, products in order of k */
#define START(r) vec x##r = load(start[r]), y##r = load(start[r] + LANES);
#define STEP(r)                  \
  {                              \
    vec s = all(a[r * lda + k]); \
    x##r += s * w0;              \
    y##r += s * w1;              \
  }
#define FINISH(r) store(out + r * ldo, x##r), store(out + r * ldo + LANES, y##r);
#define TILE(N)                                                                                             \
  static void tile_##N(long depth, const float *restrict a, long lda, const float *restrict w,              \
                       float *restrict out, long ldo, const float *const *start) {                          \
    ROWS_##N(START) for (long k = 0; k < depth; k++, w += PANEL) {                                          \
      vec w0 = load(w), w1 = load(w + LANES);                                                               \
      ROWS_##N(STEP)                                                                                        \
    }                                                                                                       \
    ROWS_##N(FINISH)                                                                                        \
  }
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers */
#define TILE_ROWS 14
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#else
#define TILE_ROWS 6
#endif

typedef void (*RegisterTile)(long, const float *, long, const float *, float *, long, const float *const *);
static const RegisterTile TILES[] = {
    0,
    tile_1, tile_2, tile_3, tile_4, tile_5, tile_6,
#if TILE_ROWS == 14
    tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14,
#endif
};

static const float NOTHING[PANEL];

/* out = start + a w; row r starts from row r % period of ``start``, from its own where the period is 0, and from zero
   without a start */
static void multiply(int rows, int depth, int columns, const float *a, long lda, const float *w, float *out, long ldo,
                     const float *start, int period) {
  int chunks = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int column = 0; column < columns; column += PANEL)
    for (int chunk = 0; chunk < chunks; chunk++) {
      int first = rows * chunk / chunks, n = rows * (chunk + 1) / chunks - first;
      const float *starts[TILE_ROWS];
      for (int r = 0; r < n; r++) {
        long row = period ? (long)((first + r) % period) * columns : (first + r) * ldo;
        starts[r] = start ? start + row + column : NOTHING;
      }
      TILES[n](depth, a + first * lda, lda, w + (long)column * depth, out + first * ldo + column, ldo, starts);
    }
}

/* ---- the activation ---- */

static inline vec reciprocal(vec x) {
#ifdef __AVX512F__
  vec y = (vec)_mm512_rcp14_ps((__m512)x);
  return y + y * (1.0f - x * y);
#else
  return 1.0f / x;
#endif
}

/* tanh x = x P(x^2) / Q(x^2) up to 1.2e-8 for |x| < 8.5; beyond that it is 1 in single precision */
static inline vec tangent(vec x) {
  const vec most = all(8.5f);
  x = at_most(x, most);
  x = (vec)(((ivec)(x < -most) & (ivec)-most) | (~(ivec)(x < -most) & (ivec)x));
  vec z = x * x;
  vec p = (((1.426922451e-08f * z + 2.125104049e-05f) * z + 3.534026584e-03f) * z + 1.341324670e-01f) * z + 1.0f;
  vec q = (((8.145121599e-07f * z + 3.348864380e-04f) * z + 2.602275029e-02f) * z + 4.674656943e-01f) * z + 1.0f;
  return x * p * reciprocal(q);
}

static void activate(int rows, int width, float *x, long ldx) {
  for (int r = 0; r < rows; r++, x += ldx)
    for (int f = 0; f < width; f += LANES) store(x + f, tangent(load(x + f)));
}

/* out = back (1 - active^2) */
static void through(int rows, int width, const float *back, long ldb, const float *active, long lda, float *out) {
  for (int r = 0; r < rows; r++, back += ldb, active += lda, out += width)
    for (int f = 0; f < width; f += LANES) {
      vec s = load(active + f);
      store(out + f, load(back + f) * (1.0f - s * s));
    }
}

/* ---- pairs ---- */

typedef struct {
  float w[4], d[4]; /* weights of the four spline coefficients, for the value and for the slope */
  float slope;      /* dE/dd so far */
  int32_t other, row;
} Pair;

/* recv_i += W x_j and recv_j += W x_i over all pairs, a chunk of C vectors of features; x has a stride of ldx */
#define GATHER(C)                                                                                             \
  static void gather_##C(const Engine *e, const Pair *pairs, const int *starts, const float *table,           \
                         const float *x, float *recv) {                                                       \
    long stride = (long)e->n_blocks * e->width;                                                               \
    for (int i = 0; i < e->n; i++) {                                                                          \
      const float *xi = x + (long)i * e->width;                                                               \
      float *ri = recv + (long)i * e->width;                                                                  \
      vec own[C], got[C];                                                                                     \
      for (int f = 0; f < C; f++) own[f] = load(xi + f * LANES), got[f] = load(ri + f * LANES);               \
      for (const Pair *p = pairs + starts[i]; p < pairs + starts[i + 1]; p++) {                               \
        const float *c = table + p->row * stride, *xj = x + (long)p->other * e->width;                        \
        float *rj = recv + (long)p->other * e->width;                                                         \
        for (int f = 0; f < C; f++) {                                                                         \
          int at = f * LANES;                                                                                 \
          vec w = p->w[0] * load(c + at) + p->w[1] * load(c + stride + at) +                                  \
                  p->w[2] * load(c + 2 * stride + at) + p->w[3] * load(c + 3 * stride + at);                  \
          got[f] += w * load(xj + at);                                                                        \
          store(rj + at, load(rj + at) + w * own[f]);                                                         \
        }                                                                                                     \
      }                                                                                                       \
      for (int f = 0; f < C; f++) store(ri + f * LANES, got[f]);                                              \
    }                                                                                                         \
  }

/* slope += (pull_i x_j + pull_j x_i) . W', and with BOTH also recv from pull as above */
#define COUPLE(NAME, C, BOTH)                                                                                 \
  static void NAME(const Engine *e, Pair *pairs, const int *starts, const float *table, const float *x,       \
                   const float *pull, float *recv) {                                                          \
    long stride = (long)e->n_blocks * e->width;                                                               \
    for (int i = 0; i < e->n; i++) {                                                                          \
      const float *xi = x + (long)i * e->width, *pi = pull + (long)i * e->width;                              \
      float *ri = recv + (long)i * e->width;                                                                  \
      vec own[C], push[C], got[C];                                                                            \
      for (int f = 0; f < C; f++) {                                                                           \
        own[f] = load(xi + f * LANES), push[f] = load(pi + f * LANES);                                        \
        if (BOTH) got[f] = load(ri + f * LANES);                                                              \
      }                                                                                                       \
      for (Pair *p = pairs + starts[i]; p < pairs + starts[i + 1]; p++) {                                     \
        long there = (long)p->other * e->width;                                                               \
        const float *c = table + p->row * stride, *xj = x + there, *pj = pull + there;                        \
        float *rj = recv + there;                                                                             \
        vec slope = {0};                                                                                      \
        for (int f = 0; f < C; f++) {                                                                         \
          int at = f * LANES;                                                                                 \
          vec c0 = load(c + at), c1 = load(c + stride + at), c2 = load(c + 2 * stride + at),                  \
              c3 = load(c + 3 * stride + at), theirs = load(pj + at);                                         \
          vec d = p->d[0] * c0 + p->d[1] * c1 + p->d[2] * c2 + p->d[3] * c3;                                  \
          slope += d * (push[f] * load(xj + at) + theirs * own[f]);                                           \
          if (BOTH) {                                                                                         \
            vec w = p->w[0] * c0 + p->w[1] * c1 + p->w[2] * c2 + p->w[3] * c3;                                \
            got[f] += w * theirs;                                                                             \
            store(rj + at, load(rj + at) + w * push[f]);                                                      \
          }                                                                                                   \
        }                                                                                                     \
        p->slope += sum(slope);                                                                               \
      }                                                                                                       \
      if (BOTH)                                                                                               \
        for (int f = 0; f < C; f++) store(ri + f * LANES, got[f]);                                            \
    }                                                                                                         \
  }

GATHER(8) GATHER(2)
COUPLE(couple_both_4, 4, 1) COUPLE(couple_both_2, 2, 1)
COUPLE(couple_4, 4, 0) COUPLE(couple_2, 2, 0)

static void gather(const Engine *e, const Pair *pairs, const int *starts, int block, const float *x, float *recv) {
  const float *table = e->table + (long)block * e->width;
  memset(recv, 0, sizeof(float) * e->n * e->width);
  int f = 0;
  for (; f + 8 * LANES <= e->width; f += 8 * LANES) gather_8(e, pairs, starts, table + f, x + f, recv + f);
  for (; f < e->width; f += 2 * LANES) gather_2(e, pairs, starts, table + f, x + f, recv + f);
}

static void couple(const Engine *e, Pair *pairs, const int *starts, int block, const float *x, const float *pull,
                   float *recv) {
  const float *table = e->table + (long)block * e->width;
  int f = 0;
  if (recv) {
    memset(recv, 0, sizeof(float) * e->n * e->width);
    for (; f + 4 * LANES <= e->width; f += 4 * LANES)
      couple_both_4(e, pairs, starts, table + f, x + f, pull + f, recv + f);
    for (; f < e->width; f += 2 * LANES) couple_both_2(e, pairs, starts, table + f, x + f, pull + f, recv + f);
  } else {
    for (; f + 4 * LANES <= e->width; f += 4 * LANES) couple_4(e, pairs, starts, table + f, x + f, pull + f, 0);
    for (; f < e->width; f += 2 * LANES) couple_2(e, pairs, starts, table + f, x + f, pull + f, 0);
  }
}

/* ---- one replica: distances, repulsion, priors ---- */

typedef struct {
  float *x, *v, *f; /* 3 x padded each: positions, velocities, forces */
  float *inverse;   /* bead x padded: 1/d */
  float *pulls;     /* bead x padded: dE/dd / d of every two beads */
  Pair *pairs;
  int *starts;
  double energy;
} Replica;

/* 1/d of all pairs, the repulsion's part of ``pulls``, and the list of pairs within the cutoff */
static void measure(const Engine *e, Replica *replica) {
  const float *x = replica->x, *y = x + e->padded, *z = y + e->padded;
  float to_knots = e->n_knots / e->cutoff, distance[e->padded];
  Pair *pair = replica->pairs;
  double energy = 0.0;
  for (int i = 0; i < e->n; i++) {
    float *inverse = replica->inverse + (long)i * e->padded, *pulls = replica->pulls + (long)i * e->padded;
    const float *self = e->self + (long)i * e->padded, *repulsion = e->repulsion + (long)i * e->padded;
    const float *steepest = e->steepest + (long)i * e->padded;
    float xi = x[i], yi = y[i], zi = z[i];
    for (int j = 0; j < e->padded; j++) {
      float dx = x[j] - xi, dy = y[j] - yi, dz = z[j] - zi;
      float square = dx * dx + dy * dy + dz * dz + self[j];
      square = square < 1e-18f ? 1e-18f : square;
      distance[j] = sqrtf(square);
      inverse[j] = 1.0f / distance[j];
    }
    if (e->has_repulsion) {
      vec half = {0};
      for (int j = 0; j < e->padded; j += LANES) {
        /* V (7 - 6 d / r) and its slope are the tangent at r, and V itself where r = d */
        vec here = load(inverse + j), one = at_most(here, load(steepest + j)), square = one * one;
        vec term = load(repulsion + j) * (square * square * square);
        store(pulls + j, -6.0f * term * one * here);
        half += 0.5f * term * (7.0f - 6.0f * load(distance + j) * one);
      }
      energy += sum(half);
    } else {
      memset(pulls, 0, sizeof(float) * e->padded);
    }
    replica->starts[i] = (int)(pair - replica->pairs);
    for (int j = i + 1; j < e->n; j++) {
      if (!(distance[j] < e->cutoff)) continue;
      float knots = distance[j] * to_knots;
      int row = (int)knots;
      row = row < e->n_knots ? row : e->n_knots - 1;
      float t = knots - (float)row, u = 1.0f - t, sixth = 1.0f / 6.0f, half = 0.5f * to_knots;
      pair->w[0] = sixth * u * u * u;
      pair->w[1] = sixth * (4.0f + t * t * (3.0f * t - 6.0f));
      pair->w[2] = sixth * (4.0f + u * u * (3.0f * u - 6.0f));
      pair->w[3] = sixth * t * t * t;
      pair->d[0] = -half * u * u;
      pair->d[1] = half * t * (3.0f * t - 4.0f);
      pair->d[2] = half * u * (4.0f - 3.0f * u);
      pair->d[3] = half * t * t;
      pair->slope = 0.0f;
      pair->other = j;
      pair->row = row;
      pair++;
    }
  }
  replica->starts[e->n] = (int)(pair - replica->pairs);
  replica->energy += energy;
}

/* forces along all pairs: of the network, whose slopes stand in the list, and of the repulsion */
static void push(const Engine *e, Replica *replica) {
  const float *x = replica->x, *y = x + e->padded, *z = y + e->padded;
  for (int i = 0; i < e->n; i++)
    for (const Pair *p = replica->pairs + replica->starts[i]; p < replica->pairs + replica->starts[i + 1]; p++) {
      long here = (long)i * e->padded + p->other, there = (long)p->other * e->padded + i;
      float pull = p->slope * replica->inverse[here];
      replica->pulls[here] += pull;
      replica->pulls[there] += pull;
    }
  for (int i = 0; i < e->n; i++) {
    const float *pulls = replica->pulls + (long)i * e->padded;
    vec fx = {0}, fy = {0}, fz = {0};
    for (int j = 0; j < e->padded; j += LANES) {
      vec pull = load(pulls + j);
      fx += pull * (load(x + j) - x[i]), fy += pull * (load(y + j) - y[i]), fz += pull * (load(z + j) - z[i]);
    }
    replica->f[i] += sum(fx), replica->f[e->padded + i] += sum(fy), replica->f[2 * e->padded + i] += sum(fz);
  }
}

typedef struct {
  float x, y, z;
} Arrow;

static inline Arrow between(const float *x, int padded, int tail, int head) {
  return (Arrow){x[head] - x[tail], x[padded + head] - x[padded + tail], x[2 * padded + head] - x[2 * padded + tail]};
}
static inline float dot(Arrow a, Arrow b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline Arrow cross(Arrow a, Arrow b) {
  return (Arrow){a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
static inline Arrow scaled(float s, Arrow a) { return (Arrow){s * a.x, s * a.y, s * a.z}; }
static inline Arrow plus(Arrow a, Arrow b) { return (Arrow){a.x + b.x, a.y + b.y, a.z + b.z}; }
static inline float length(Arrow a) {
  float square = dot(a, a);
  return sqrtf(square < 1e-18f ? 1e-18f : square);
}
/* gradient by a vector of this length, from that by its unit vector */
static inline Arrow turning(Arrow g, Arrow unit, float length) {
  return scaled(1.0f / length, plus(g, scaled(-dot(g, unit), unit)));
}

/* energies and gradients of n terms, then summed one after the other: gradient[place][axis][term] */
static void collect(Replica *replica, int padded, int places, int n, const int *beads, const float *gradient,
                    const float *energy) {
  for (int place = 0; place < places; place++)
    for (int axis = 0; axis < 3; axis++)
      for (int term = 0; term < n; term++)
        replica->f[axis * padded + beads[place * n + term]] -= gradient[(place * 3 + axis) * n + term];
  double total = 0.0;
  for (int term = 0; term < n; term++) total += energy[term];
  replica->energy += total;
}

#define PUT(place, g)                           \
  gradient[((place)*3 + 0) * n + term] = (g).x; \
  gradient[((place)*3 + 1) * n + term] = (g).y; \
  gradient[((place)*3 + 2) * n + term] = (g).z;

static void bonds(const Engine *e, Replica *replica) {
  int n = e->prior.n_bonds, padded = e->padded;
  const int *i = e->prior.bond, *j = i + n;
  const float *k = e->prior.bond_k, *centre = e->prior.bond_0;
  float gradient[6 * n + 1], energy[n + 1];
  for (int term = 0; term < n; term++) {
    Arrow d = between(replica->x, padded, i[term], j[term]);
    float size = length(d), off = size - centre[term], slope = k[term] * off;
    energy[term] = 0.5f * slope * off;
    Arrow g = scaled(slope / size, d), other = scaled(-1.0f, g);
    PUT(0, other) PUT(1, g)
  }
  collect(replica, padded, 2, n, i, gradient, energy);
}

static void angles(const Engine *e, Replica *replica) {
  int n = e->prior.n_angles, padded = e->padded;
  const int *i = e->prior.angle, *centre = i + n, *j = i + 2 * n;
  const float *k = e->prior.angle_k, *rest = e->prior.angle_0;
  float gradient[9 * n + 1], energy[n + 1];
  for (int term = 0; term < n; term++) {
    Arrow a = between(replica->x, padded, centre[term], i[term]);
    Arrow b = between(replica->x, padded, centre[term], j[term]);
    float size_a = length(a), size_b = length(b);
    Arrow u = scaled(1.0f / size_a, a), w = scaled(1.0f / size_b, b);
    float off = dot(u, w) - rest[term], slope = k[term] * off;
    energy[term] = 0.5f * slope * off;
    Arrow ga = turning(scaled(slope, w), u, size_a), gb = turning(scaled(slope, u), w, size_b);
    Arrow gc = scaled(-1.0f, plus(ga, gb));
    PUT(0, ga) PUT(1, gc) PUT(2, gb)
  }
  collect(replica, padded, 3, n, i, gradient, energy);
}

static void impropers(const Engine *e, Replica *replica) {
  int n = e->prior.n_impropers, padded = e->padded;
  const int *centre = e->prior.improper;
  const float *k = e->prior.improper_k, *rest = e->prior.improper_0;
  float gradient[12 * n + 1], energy[n + 1];
  for (int term = 0; term < n; term++) {
    int tail = centre[term];
    Arrow a = between(replica->x, padded, tail, centre[n + term]);
    Arrow b = between(replica->x, padded, tail, centre[2 * n + term]);
    Arrow c = between(replica->x, padded, tail, centre[3 * n + term]);
    float size_a = length(a), size_b = length(b), size_c = length(c);
    a = scaled(1.0f / size_a, a), b = scaled(1.0f / size_b, b), c = scaled(1.0f / size_c, c);
    Arrow ab = cross(a, b);
    float off = dot(ab, c) - rest[term], slope = k[term] * off;
    energy[term] = 0.5f * slope * off;
    Arrow ga = turning(scaled(slope, cross(b, c)), a, size_a), gb = turning(scaled(slope, cross(c, a)), b, size_b);
    Arrow gc = turning(scaled(slope, ab), c, size_c), g0 = scaled(-1.0f, plus(plus(ga, gb), gc));
    PUT(0, g0) PUT(1, ga) PUT(2, gb) PUT(3, gc)
  }
  collect(replica, padded, 4, n, centre, gradient, energy);
}

static inline float some(float square) { return square < 1e-12f ? 1e-12f : square; }

/* as in hpc_cg/forcefield/torsions.py: cosine and sine from bond vectors, multiples by the addition theorem */
static void torsions(const Engine *e, Replica *replica) {
  int n = e->prior.n_torsions, padded = e->padded, order = e->prior.order;
  const int *i = e->prior.torsion, *j = i + n, *k = i + 2 * n, *l = i + 3 * n;
  float gradient[12 * n + 1], energy[n + 1];
  for (int term = 0; term < n; term++) {
    Arrow b1 = between(replica->x, padded, i[term], j[term]), b2 = between(replica->x, padded, j[term], k[term]);
    Arrow b3 = between(replica->x, padded, k[term], l[term]), m = cross(b1, b2), o = cross(b2, b3);
    float axis = sqrtf(some(dot(b2, b2))), m2 = some(dot(m, m)), o2 = some(dot(o, o));
    float scale = 1.0f / sqrtf(m2) / sqrtf(o2), cosine = dot(m, o) * scale, sine = axis * dot(b1, o) * scale;
    float value = 0.0f, slope = 0.0f, c = cosine, s = sine;
    for (int multiple = 0; multiple < order; multiple++) {
      float a = e->prior.sine[multiple * n + term], b = e->prior.cosine[multiple * n + term];
      float next = c * cosine - s * sine;
      value += a * s + b * c;
      slope += (float)(multiple + 1) * (a * c - b * s);
      s = s * cosine + c * sine;
      c = next;
    }
    energy[term] = value;
    m = scaled(slope / m2, m), o = scaled(slope / o2, o);
    Arrow g1 = scaled(axis, m), g3 = scaled(axis, o);
    Arrow g2 = plus(scaled(-dot(b1, b2) / axis, m), scaled(-dot(b3, b2) / axis, o));
    Arrow first = scaled(-1.0f, g1), second = plus(g1, scaled(-1.0f, g2)), third = plus(g2, scaled(-1.0f, g3));
    PUT(0, first) PUT(1, second) PUT(2, third) PUT(3, g3)
  }
  collect(replica, padded, 4, n, i, gradient, energy);
}

/* ---- forces of a tile ---- */

typedef struct {
  int size;         /* replicas */
  Replica *replica;
  float *active;    /* row x (block, feature): activations of all blocks */
  float *back;      /* the same: derivatives by them */
  float *sent;      /* block x row x feature */
  float *recv, *pull, *carry;
  float *hidden[MAX_LAYERS];
} Tile;

/* energies and forces of all replicas of a tile, at their positions */
static void evaluate(const Engine *e, Tile *t) {
  int n = e->n, width = e->width, rows = t->size * n, state = e->n_blocks * width;
  long block_rows = (long)rows * width;
  for (int r = 0; r < t->size; r++) {
    Replica *replica = t->replica + r;
    replica->energy = 0.0;
    memset(replica->f, 0, sizeof(float) * 3 * e->padded);
    measure(e, replica);
    bonds(e, replica), angles(e, replica), impropers(e, replica), torsions(e, replica);
  }
  for (int block = 0; block < e->n_blocks; block++) {
    const Layer *lift = e->lift + block, *mix = e->mix + block;
    float *active = t->active + (long)block * width, *sent = t->sent + block * block_rows;
    if (block) multiply(rows, lift->in, width, t->active, state, lift->weight, sent, width, lift->constant, n);
    for (int r = 0; r < t->size; r++)
      gather(e, t->replica[r].pairs, t->replica[r].starts, block, block ? sent + (long)r * n * width : e->opening,
             t->recv + (long)r * n * width);
    multiply(rows, width, width, t->recv, width, mix->weight, active, state, mix->constant, 1);
    activate(rows, width, active, state);
  }
  const float *below = t->active;
  long ldx = state;
  for (int l = 0; l < e->n_hidden; l++) {
    const Layer *layer = e->hidden + l;
    multiply(rows, layer->in, layer->out, below, ldx, layer->weight, t->hidden[l], layer->out, layer->constant,
             layer->rows);
    activate(rows, layer->out, t->hidden[l], layer->out);
    below = t->hidden[l], ldx = layer->out;
  }
  for (int row = 0; row < rows; row++) {
    vec energy = {0};
    for (int f = 0; f < ldx; f += LANES) {
      vec active = load(below + row * ldx + f), last = load(e->last + f);
      energy += active * last;
      store(t->carry + row * ldx + f, last * (1.0f - active * active));
    }
    t->replica[row / n].energy += sum(energy);
  }
  for (int l = e->n_hidden - 1; l >= 0; l--) {
    const Layer *layer = e->hidden + l;
    float *out = l ? t->pull : t->back;
    long ldo = l ? layer->in : state;
    multiply(rows, layer->out, layer->in, t->carry, layer->out, layer->back, out, ldo, 0, 1);
    if (l) through(rows, layer->in, out, ldo, t->hidden[l - 1], layer->in, t->carry);
  }
  for (int block = e->n_blocks - 1; block >= 0; block--) {
    const Layer *lift = e->lift + block, *mix = e->mix + block;
    through(rows, width, t->back + (long)block * width, state, t->active + (long)block * width, state, t->carry);
    multiply(rows, width, width, t->carry, width, mix->back, t->pull, width, 0, 1);
    for (int r = 0; r < t->size; r++) {
      long here = (long)r * n * width;
      couple(e, t->replica[r].pairs, t->replica[r].starts, block,
             block ? t->sent + block * block_rows + here : e->opening, t->pull + here, block ? t->recv + here : 0);
    }
    if (block) multiply(rows, width, lift->in, t->recv, width, lift->back, t->back, state, t->back, 0);
  }
  for (int r = 0; r < t->size; r++) push(e, t->replica + r);
}

/* ---- noise ---- */

static inline void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    uint64_t p = (uint64_t)0xD2511F53u * c[0], q = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t c1 = c[1], c3 = c[3];
    c[0] = (uint32_t)(q >> 32) ^ c1 ^ k0, c[1] = (uint32_t)q;
    c[2] = (uint32_t)(p >> 32) ^ c3 ^ k1, c[3] = (uint32_t)p;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

/* sqrt(-2 ln u), u = (bits + 1/2) / 2^32, the logarithm by the series of atanh */
static inline float radius(uint32_t bits) {
  float u = (float)bits * 0x1p-32f + 0x1p-33f;
  int32_t word;
  memcpy(&word, &u, 4);
  int32_t power = (word - 0x3f3504f3) >> 23; /* mantissa from sqrt(1/2) to sqrt(2) */
  word -= power * (1 << 23);
  float m;
  memcpy(&m, &word, 4);
  float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float series = s * (2.0f + z * (0.66666667f + z * (0.4f + z * (0.28571429f + z * 0.22222222f))));
  float square = -2.0f * ((float)power * 0.69314718f + series);
  return sqrtf(square < 0.0f ? 0.0f : square);
}

/* cosine and sine of 2 pi (bits as signed) / 2^32, by their Taylor series in the nearest quarter turn */
static inline void direction(uint32_t bits, float *cosine, float *sine) {
  int32_t quarter = (int32_t)(bits + 0x20000000u) >> 30;
  float x = (float)(int32_t)(bits - ((uint32_t)quarter << 30)) * (6.2831853f * 0x1p-32f), z = x * x;
  float s = x * (1.0f + z * (-1.6666667e-1f + z * (8.3333333e-3f + z * (-1.9841270e-4f + z * 2.7557319e-6f))));
  float c = 1.0f + z * (-0.5f + z * (4.1666667e-2f + z * (-1.3888889e-3f + z * (2.4801587e-5f - z * 2.7557319e-7f))));
  float turned_c = quarter & 1 ? s : c, turned_s = quarter & 1 ? c : s;
  *cosine = (quarter + 1) & 2 ? -turned_c : turned_c;
  *sine = quarter & 2 ? -turned_s : turned_s;
}

/* normal numbers (3 x padded) of one replica and step */
static void normals(const Engine *e, const Dynamics *dynamics, uint32_t replica, uint64_t step, float *out) {
  for (int bead = 0; bead < e->padded; bead++) {
    uint32_t c[4] = {(uint32_t)bead, replica, (uint32_t)step, (uint32_t)(step >> 32)};
    float cosine, sine, other_cosine, other_sine;
    philox(c, dynamics->key[0], dynamics->key[1]);
    direction(c[1], &cosine, &sine);
    direction(c[3], &other_cosine, &other_sine);
    float size = radius(c[0]);
    out[bead] = size * cosine;
    out[e->padded + bead] = size * sine;
    out[2 * e->padded + bead] = radius(c[2]) * other_cosine;
  }
}

/* ---- dynamics of a tile ---- */

/* kick, drift, thermostat, drift: what comes before the forces of a step */
static void advance(const Engine *e, const Dynamics *d, Replica *replica, uint32_t id, float heat, uint64_t step) {
  float noise[3 * e->padded];
  normals(e, d, id, step, noise);
  for (int place = 0; place < 3 * e->padded; place++) noise[place] *= heat;
  for (int axis = 0; axis < 3; axis++) {
    float *x = replica->x + axis * e->padded, *v = replica->v + axis * e->padded, *f = replica->f + axis * e->padded;
    if (!d->inertia) {
      for (int bead = 0; bead < e->n; bead++)
        x[bead] += d->kick[bead] * f[bead] + d->spread[bead] * noise[axis * e->padded + bead];
      continue;
    }
    for (int bead = 0; bead < e->n; bead++) {
      float speed = v[bead] + d->kick[bead] * f[bead], place = x[bead] + d->drift * speed;
      speed = speed * d->decay + d->spread[bead] * noise[axis * e->padded + bead];
      v[bead] = speed;
      x[bead] = place + d->drift * speed;
    }
  }
}

static void kick(const Engine *e, const Dynamics *d, Replica *replica) {
  for (int axis = 0; axis < 3; axis++)
    for (int bead = 0; bead < e->n; bead++)
      replica->v[axis * e->padded + bead] += d->kick[bead] * replica->f[axis * e->padded + bead];
}

/* the next part of a memory that may be absent while its size is counted */
static void *claim(char *memory, size_t *used, size_t bytes) {
  void *here = memory ? memory + *used : 0;
  *used += (bytes + 63) / 64 * 64 + 64;
  return here;
}

/* lay the parts of a tile of ``size`` replicas out in a memory; gives how much that takes */
static size_t lay_out(const Engine *e, int size, Tile *t, char *memory) {
  size_t used = 0, n = e->n, row = sizeof(float) * size * n, widest = (size_t)e->n_blocks * e->width;
  size_t vectors = sizeof(float) * 3 * e->padded, square = sizeof(float) * n * e->padded;
  t->active = claim(memory, &used, row * widest), t->back = claim(memory, &used, row * widest);
  t->sent = claim(memory, &used, row * widest), t->recv = claim(memory, &used, row * e->width);
  for (int l = 0; l < e->n_hidden; l++) {
    size_t out = e->hidden[l].out;
    t->hidden[l] = claim(memory, &used, row * out);
    widest = widest > out ? widest : out;
  }
  t->pull = claim(memory, &used, row * widest), t->carry = claim(memory, &used, row * widest);
  t->replica = claim(memory, &used, sizeof(Replica) * size);
  for (int r = 0; r < size; r++) {
    Replica part = {0};
    part.x = claim(memory, &used, vectors), part.v = claim(memory, &used, vectors);
    part.f = claim(memory, &used, vectors);
    part.inverse = claim(memory, &used, square), part.pulls = claim(memory, &used, square);
    part.pairs = claim(memory, &used, sizeof(Pair) * n * (n - 1) / 2);
    part.starts = claim(memory, &used, sizeof(int) * (n + 1));
    if (memory) t->replica[r] = part;
  }
  return used;
}

/* between arrays (bead 3) and (3 padded) */
static void bring(const Engine *e, const float *from, float *to) {
  for (int bead = 0; bead < e->n; bead++)
    for (int axis = 0; axis < 3; axis++) to[axis * e->padded + bead] = from[3 * bead + axis];
}

static void take(const Engine *e, const float *from, float *to) {
  for (int bead = 0; bead < e->n; bead++)
    for (int axis = 0; axis < 3; axis++) to[3 * bead + axis] = from[axis * e->padded + bead];
}

static int run_tile(const Engine *e, const Dynamics *d, int size, const int64_t *ids, const float *heat, uint64_t step,
                    long n_steps, float *positions, float *velocities, float *forces, float *energies) {
  Tile t = {.size = size};
  size_t bytes = lay_out(e, size, &t, 0);
  char *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  long stride = 3L * e->n;
  if (!memory) return 1;
  memset(memory, 0, bytes);
  lay_out(e, size, &t, memory);
  for (int r = 0; r < size; r++) {
    bring(e, positions + r * stride, t.replica[r].x);
    bring(e, velocities + r * stride, t.replica[r].v);
    bring(e, forces + r * stride, t.replica[r].f);
  }
  for (long done = 0; done < n_steps; done++) {
    for (int r = 0; r < size; r++) advance(e, d, t.replica + r, (uint32_t)ids[r], heat[r], step + (uint64_t)done);
    evaluate(e, &t);
    for (int r = 0; r < size && d->inertia; r++) kick(e, d, t.replica + r);
  }
  if (!n_steps) evaluate(e, &t);
  for (int r = 0; r < size; r++) {
    take(e, t.replica[r].x, positions + r * stride);
    take(e, t.replica[r].v, velocities + r * stride);
    take(e, t.replica[r].f, forces + r * stride);
    energies[r] = (float)t.replica[r].energy;
  }
  free(memory);
  return 0;
}

/* ---- what is called from outside ---- */

/* Make n_steps steps from ``step`` on with all replicas, in place; with n_steps = 0 only energies and forces are found.
   Arrays run (replica, bead, 3); ``heat`` scales the noise of each replica. Gives 0, or 1 where memory is short. */
int engine_run(const Engine *e, int n_replicas, int tile, int n_threads, const int64_t *ids, uint64_t step, long n_steps,
               int inertia, float drift, float decay, const float *kick_of, const float *spread, const float *heat,
               const uint32_t *key, float *positions, float *velocities, float *forces, float *energies) {
  Dynamics d = {inertia, drift, decay, kick_of, spread, {key[0], key[1]}};
  int n_tiles = (n_replicas + tile - 1) / tile, failed = 0;
  long stride = 3L * e->n;
  n_threads = n_threads < n_tiles ? n_threads : n_tiles;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic) reduction(| : failed) if (n_threads > 1)
  for (int place = 0; place < n_tiles; place++) {
    int first = (int)((long)n_replicas * place / n_tiles), stop = (int)((long)n_replicas * (place + 1) / n_tiles);
    failed |= run_tile(e, &d, stop - first, ids + first, heat + first, step, n_steps, positions + first * stride,
                       velocities + first * stride, forces + first * stride, energies + first);
  }
  return failed;
}

/* the next numbers of two lists, whose order is that of hpc_cg/simulate/compiled.py */
typedef struct {
  const int32_t *ints;
  const float *floats;
} Reader;

static void *owned(size_t bytes) { return calloc(1, (bytes + 127) / 64 * 64); }

static int *read_ints(Reader *from, size_t n) {
  int *out = owned(n * sizeof(int));
  if (out) memcpy(out, from->ints, n * sizeof(int));
  from->ints += n;
  return out;
}

static float *read_floats(Reader *from, size_t n) {
  float *out = 0;
  size_t bytes = (n * sizeof(float) + 127) / 64 * 64;
  if ((out = aligned_alloc(64, bytes))) memset(out, 0, bytes), memcpy(out, from->floats, n * sizeof(float));
  from->floats += n;
  return out;
}

/* weights (in x out) as panels of columns: within a panel, row after row; ``across`` packs the transpose */
static float *packed(const float *weight, int in, int out, int across) {
  int depth = across ? out : in, columns = across ? in : out;
  float *to = aligned_alloc(64, ((size_t)in * out * sizeof(float) + 127) / 64 * 64), *at = to;
  if (!to) return 0;
  for (int panel = 0; panel < columns; panel += PANEL)
    for (int k = 0; k < depth; k++)
      for (int column = panel; column < panel + PANEL; column++)
        *at++ = across ? weight[(long)column * out + k] : weight[(long)k * out + column];
  return to;
}

static int read_layer(Reader *from, Layer *layer) {
  int *shape = read_ints(from, 3);
  if (!shape) return 1;
  layer->rows = shape[0], layer->in = shape[1], layer->out = shape[2];
  free(shape);
  layer->constant = read_floats(from, (size_t)layer->rows * layer->out);
  layer->weight = packed(from->floats, layer->in, layer->out, 0);
  layer->back = packed(from->floats, layer->in, layer->out, 1);
  from->floats += (size_t)layer->in * layer->out;
  return !layer->constant || !layer->weight || !layer->back;
}

static void free_layer(Layer *layer) { free(layer->constant), free(layer->weight), free(layer->back); }

void engine_free(Engine *e) {
  if (!e) return;
  Priors *p = &e->prior;
  for (int block = 0; block < e->n_blocks; block++) free_layer(e->lift + block), free_layer(e->mix + block);
  for (int l = 0; l < e->n_hidden; l++) free_layer(e->hidden + l);
  free(p->bond), free(p->angle), free(p->improper), free(p->torsion);
  free(p->bond_k), free(p->bond_0), free(p->angle_k), free(p->angle_0), free(p->improper_k), free(p->improper_0);
  free(p->sine), free(p->cosine);
  free(e->table), free(e->opening), free(e->last), free(e->repulsion), free(e->steepest), free(e->self), free(e);
}

static int read_priors(Reader *from, Priors *p) {
  int *shape = read_ints(from, 5);
  if (!shape) return 1;
  p->n_bonds = shape[0], p->n_angles = shape[1], p->n_impropers = shape[2], p->n_torsions = shape[3];
  p->order = shape[4];
  free(shape);
  p->bond = read_ints(from, 2 * p->n_bonds), p->angle = read_ints(from, 3 * p->n_angles);
  p->improper = read_ints(from, 4 * p->n_impropers), p->torsion = read_ints(from, 4 * p->n_torsions);
  p->bond_k = read_floats(from, p->n_bonds), p->bond_0 = read_floats(from, p->n_bonds);
  p->angle_k = read_floats(from, p->n_angles), p->angle_0 = read_floats(from, p->n_angles);
  p->improper_k = read_floats(from, p->n_impropers), p->improper_0 = read_floats(from, p->n_impropers);
  p->sine = read_floats(from, (size_t)p->n_torsions * p->order);
  p->cosine = read_floats(from, (size_t)p->n_torsions * p->order);
  return !p->bond || !p->angle || !p->improper || !p->torsion || !p->bond_k || !p->bond_0 || !p->angle_k ||
         !p->angle_0 || !p->improper_k || !p->improper_0 || !p->sine || !p->cosine;
}

/* repulsion of the pairs of a list, each once, as squares of all beads */
static int read_repulsion(Reader *from, Engine *e) {
  int *n_pairs = read_ints(from, 1);
  if (!n_pairs) return 1;
  int n = *n_pairs, *pairs = read_ints(from, 2 * n);
  float *strength = read_floats(from, n), *steepest = read_floats(from, n);
  size_t square = (size_t)e->n * e->padded * sizeof(float);
  free(n_pairs);
  e->has_repulsion = n > 0, e->repulsion = owned(square), e->steepest = owned(square), e->self = owned(square);
  int failed = !pairs || !strength || !steepest || !e->repulsion || !e->steepest || !e->self;
  for (int place = 0; place < n && !failed; place++) {
    int i = pairs[place], j = pairs[n + place];
    long here = (long)i * e->padded + j, there = (long)j * e->padded + i;
    e->repulsion[here] = e->repulsion[there] = strength[place];
    e->steepest[here] = e->steepest[there] = steepest[place];
  }
  for (int i = 0; i < e->n && !failed; i++)
    for (int j = 0; j < e->padded; j++) e->self[(long)i * e->padded + j] = j == i || j >= e->n;
  free(pairs), free(strength), free(steepest);
  return failed;
}

/* An engine of its own memory from two lists of numbers; 0 where the lists do not fit together or memory is short. */
Engine *engine_new(const int32_t *ints, long n_ints, const float *floats, long n_floats) {
  Engine *e = calloc(1, sizeof(Engine));
  Reader from = {ints, floats};
  if (!e) return 0;
  e->n = ints[0], e->width = ints[1], e->n_knots = ints[4];
  int n_blocks = ints[2], n_hidden = ints[3], failed = 0;
  from.ints += 5;
  e->padded = (e->n + LANES - 1) / LANES * LANES;
  e->cutoff = floats[0];
  from.floats += 1;
  e->table = read_floats(&from, (size_t)(e->n_knots + 3) * n_blocks * e->width);
  e->opening = read_floats(&from, (size_t)e->n * e->width);
  failed |= !e->table || !e->opening;
  for (; e->n_blocks < n_blocks; e->n_blocks++) {
    failed |= read_layer(&from, e->lift + e->n_blocks);
    failed |= read_layer(&from, e->mix + e->n_blocks);
  }
  for (; e->n_hidden < n_hidden; e->n_hidden++) failed |= read_layer(&from, e->hidden + e->n_hidden);
  e->last = read_floats(&from, e->hidden[n_hidden - 1].out);
  failed |= !e->last || read_priors(&from, &e->prior) || read_repulsion(&from, e);
  failed |= from.ints != ints + n_ints || from.floats != floats + n_floats;
  if (failed) engine_free(e);
  return failed ? 0 : e;
}

/* The generator alone, for tests: n blocks of four words from counters and one key. */
void engine_philox(long n, const uint32_t *counters, const uint32_t *key, uint32_t *out) {
  memcpy(out, counters, n * 4 * sizeof(uint32_t));
  for (long place = 0; place < n; place++) philox(out + 4 * place, key[0], key[1]);
}
