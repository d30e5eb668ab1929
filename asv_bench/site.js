/* What is added to asv's scripts. It has to run before them. */
'use strict';

(function() {
    /* Benchmarks over several shapes differ by powers of ten: show them on a logarithmic scale, unless told. */
    function use_log_scale() {
        if (/^#(losses|limit|peers|options|start)\.\w+\.\w+$/.test(window.location.hash)) {
            window.location.replace(window.location.hash + '?y-axis-scale=log');
        }
    }
    window.addEventListener('hashchange', use_log_scale);
    use_log_scale();

    /* A benchmark that few commits have is a point, which the small graphs would not show. */
    var plot = $.plot;
    $.plot = function(element, data, options) {
        if ($(element).hasClass('benchmark-plot')) {
            options.series.points = {show: true, radius: 2};
        }
        return plot(element, data, options);
    };
    $.extend($.plot, plot);
})();
