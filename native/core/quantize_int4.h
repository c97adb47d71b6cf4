// A row of weights as int4: w ~ scale * m * q, q in -8..7, m in 1..16 or -16..-1 a group, |m q| <= 120, one scale a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trivet {

// Quantizes rows of k weights in groups of `group`, a multiple of 8 that divides k. Owns its scratch: only making one
// allocates. One row at a time; each thread has its own.
class Int4Quantizer {
 public:
  static constexpr int kGrid = 8;  // steps at which a group's error is measured

  Int4Quantizer(size_t k, size_t group);

  // Fills codes q [k] and multipliers [k / group] of the row; returns the scale. x [k] is scaled in place. A row of
  // next to nothing: scale 1, multipliers 1, codes left as they are.
  float row(float* x, int8_t* codes, int8_t* multipliers);

 private:
  struct Group {
    float top;           // largest magnitude
    float step;          // ideal step; 0 for a group of zeros
    bool flipped;        // its sign is the multiplier's
    float error[kGrid];  // at the steps of the grid
  };

  void measure_groups(float* x);
  void choose_scales(float out[2]) const;
  float choose_multipliers(const float* x, float scale, uint8_t* out) const;
  static float curve(const Group& group, float d);

  size_t k_, group_;
  std::vector<Group> groups_;
  std::vector<uint8_t> candidates_[2];  // multipliers for each of the two scales tried
};

}  // namespace trivet
